"""Parquet -> batches: row groups dealt to ranks and workers, shuffled by epoch, every rank the same number of steps.

How an epoch is dealt. The row groups, in an order shuffled by (seed, epoch), form one sequence of N rows. It is cut into equal
runs, one a rank (a row group on a border is read by both sides), each run into the same number of steps
``ceil(N / (ranks * batch_size))``, again of equal size. So no rank runs out before another, every row is read once, and there
is no small last batch: the tail is spread over all batches, which hold ``batch_size`` rows or a few less. Where N is no
multiple of the ranks, the runs that are one row short repeat their last row with weight 0: row-wise sharded tables need
batches of one size on all ranks. Weight 0 keeps it out of losses and figures; only batch norm's statistics see it.

With workers, each reads a contiguous part of its rank's steps.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import IterableDataset, get_worker_info
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.data.batch import Batch, MatchIds
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.lookups import Lookups
from mail_torchrec.data.negatives import NegativeSampler
from mail_torchrec.data.schema import Schema
from mail_torchrec.data.source import RowGroup, Source
from mail_torchrec.data.values import Bools, Ints, Ragged
from mail_torchrec.data.vocabulary import UNKNOWN_ROW
from mail_torchrec.data.window import Window, WindowEncoder
from mail_torchrec.settings import Settings


class DataSettings(Settings):
    """Where the rows are and how they are read."""

    root: str = ""
    """Folder or URI that ``train`` and ``test`` lie below."""
    train: str = "train"
    """Parquet file or folder of files, below ``root``."""
    test: str = "test"
    """The same for evaluation."""
    cold_start: ColdStartSettings = ColdStartSettings()
    new_user_max_behaviours: int = Field(default=0, ge=0)
    """A row is a new user's when all its sequences together hold at most so many behaviours (unless the schema has a new_user column)."""
    shuffle_rows: int = Field(default=65_536, ge=1)
    """Rows shuffled together; row groups are shuffled too."""
    group_by_user: bool = False
    """Shuffled rows of one user stay together within those: users come in random order, and so do the rows of each. For MetaEmb."""
    num_workers: int = Field(default=0, ge=0)
    """Reader processes a rank; 0 reads in the training process."""

    def path(self, part: str) -> str:
        """``part`` below ``root``."""
        return f"{self.root.rstrip('/')}/{part}" if self.root else part


@dataclass(frozen=True)
class Share:
    """Which part of the rows this rank reads."""

    rank: int = 0
    world_size: int = 1


class Reader(IterableDataset[Batch]):
    """The batches of one rank.

    Args:
        source: opened files.
        schema: their columns.
        encoders: raw values -> rows.
        lookups: the keys to write.
        settings: cold start, shuffle window, new-user rule.
        share: which rank of how many.
        batch_size: most rows a batch.
        shuffle: by (seed, epoch); otherwise file order.
        seed: of shuffle and negatives.
        samplers: sequence -> sampler of its negatives; none outside training.

    Raises:
        ValueError: fewer rows than ranks; while iterating, any value that cannot be trained on.
    """

    def __init__(
        self,
        source: Source,
        schema: Schema,
        encoders: Encoders,
        lookups: Lookups,
        settings: DataSettings,
        *,
        share: Share,
        batch_size: int,
        shuffle: bool,
        seed: int,
        samplers: dict[str, NegativeSampler] | None = None,
    ) -> None:
        if source.num_rows < share.world_size:
            raise ValueError(f"'{source.path}' holds {source.num_rows} rows for {share.world_size} ranks; use fewer ranks or more rows")
        self._source, self._schema, self._lookups, self._settings = source, schema, lookups, settings
        self._encode = WindowEncoder(schema, encoders, settings.cold_start, settings.new_user_max_behaviours)
        self._share, self._shuffle, self._seed, self._samplers = share, shuffle, seed, samplers or {}
        self._num_steps = -(-source.num_rows // (share.world_size * batch_size))
        self._epoch = 0
        self._scalars, self._lists = schema.scalars, schema.lists
        self._pooled, self._unpooled = list(lookups.pooled), list(lookups.unpooled)
        self.count_names = [f"unknown/{name}" for name in self._scalars + self._lists] + [f"cut/{name}" for name in self._lists]
        self.count_names += [f"unclicked/{schema.conversion}"] if schema.conversion else []
        self._by_user = shuffle and settings.group_by_user
        self.count_names += [f"distinct/{schema.group_key}"] if self._by_user else []

    def __len__(self) -> int:
        return self._num_steps

    @property
    def path(self) -> str:
        """Where its rows are."""
        return self._source.path

    def set_epoch(self, epoch: int) -> None:
        """Chooses the shuffle of the next iteration."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        all_steps = range(self._num_steps) if worker is None else _cut(self._num_steps, worker.num_workers, worker.id)
        bounds, run = self._step_bounds(), self._run()
        order = self._group_order()
        ends = list(accumulate(group.num_rows for group in order))
        decode = lru_cache(maxsize=1)(self._decode)  # a row group on the border of two windows is decoded once
        for steps in _windows(all_steps, bounds, self._settings.shuffle_rows):
            start, stop = bounds[steps.start], bounds[steps.stop]
            slices = _slices(ends, min(start, run.stop - 1), min(stop, run.stop))
            window = Window.concatenate([decode(order[i]).take(rows) for i, rows in slices])
            permutation = self._permutation(steps.start, stop - start, window)
            for step in steps:
                rows = permutation[bounds[step] - start : bounds[step + 1] - start]
                yield self._batch(window.take(np.minimum(rows, len(window) - 1)), rows < run.stop - start, step)

    def _decode(self, group: RowGroup) -> Window:
        return self._encode(self._source.read(group), self._source.file(group))

    def _run(self) -> range:
        """The rows of this rank, in the order of the epoch."""
        return _cut(self._source.num_rows, self._share.world_size, self._share.rank)

    def _step_bounds(self) -> list[int]:
        """Where each step begins, and where the last one ends: at most one row behind the run."""
        start, longest = self._run().start, -(-self._source.num_rows // self._share.world_size)
        return [start + longest * step // self._num_steps for step in range(self._num_steps + 1)]

    def _group_order(self) -> list[RowGroup]:
        groups = self._source.row_groups
        if not self._shuffle:
            return groups
        return [groups[i] for i in np.random.default_rng([self._seed, self._epoch]).permutation(len(groups))]

    def _permutation(self, step: int, num_rows: int, window: Window) -> Ints:
        """An order of a window's rows; one more than it holds where its last row is repeated."""
        if not self._shuffle:
            return np.arange(num_rows)
        random = self._random(step, stream=0)
        order = random.permutation(num_rows)
        if not self._by_user:
            return order
        users, user_R = np.unique(window.users_R, return_inverse=True)
        places = random.permutation(len(users))[user_R[np.minimum(order, len(window) - 1)]]
        return order[np.argsort(places, kind="stable")]

    def _random(self, step: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, self._epoch, self._share.rank, step, stream])

    def _batch(self, window: Window, is_real_R: Bools, step: int) -> Batch:
        one_a_row = np.ones(len(window), dtype=np.int64)
        ids = {name: Ragged(column, one_a_row) for name, column in zip(self._scalars, window.scalars_RC.T, strict=True)} | window.lists
        match = {}
        for stream, sequence in enumerate(self._lookups.match, start=1):
            match[sequence] = self._match(len(window), sequence, self._random(step, stream), ids)
        return Batch(
            _jagged(self._pooled, ids),
            _jagged(self._unpooled, ids),
            torch.from_numpy(window.numeric_RN),
            torch.from_numpy(window.labels_R).float(),
            torch.from_numpy(window.labels_R & window.conversions_R).float(),
            torch.from_numpy(is_real_R).float(),
            torch.from_numpy(window.users_R),
            torch.from_numpy(window.is_new_R),
            torch.from_numpy(window.is_cold_R),
            match,
            torch.from_numpy(self._counts(window if is_real_R.all() else window.take(np.flatnonzero(is_real_R)))),
        )

    def _counts(self, window: Window) -> Ints:
        """In the order of ``count_names``."""
        unknown = np.count_nonzero(window.scalars_RC == UNKNOWN_ROW, axis=0)
        unknown_in_lists = [np.count_nonzero(window.lists[name].values == UNKNOWN_ROW) for name in self._lists]
        unclicked = [np.count_nonzero(window.conversions_R & ~window.labels_R)] if self._schema.conversion else []
        users = [len(np.unique(window.users_R))] if self._by_user else []
        return np.concatenate([unknown, unknown_in_lists, np.count_nonzero(window.is_cut_RL, axis=0), unclicked, users]).astype(np.int64)

    def _match(self, num_rows: int, sequence: str, random: np.random.Generator, ids: dict[str, Ragged]) -> MatchIds:
        """Adds the keys of a sequence's match loss to ``ids``."""
        keys = self._lookups.match[sequence]
        last = _last(ids[sequence])
        sampler = self._samplers.get(sequence)
        negatives = sampler.sample(random) if sampler else np.zeros(0, dtype=np.int64)
        ids[keys.target] = ids[self._schema.target_of(sequence)]
        ids[keys.last] = Ragged(last, np.ones(num_rows, dtype=np.int64))
        ids[keys.negatives] = Ragged(negatives, np.diff(len(negatives) * np.arange(num_rows + 1) // num_rows))
        log_q = [sampler.log_expected(rows) if sampler else np.zeros(len(rows), dtype=np.float32) for rows in (last, negatives)]
        return MatchIds(*(torch.from_numpy(part) for part in (last, negatives, *log_q)))


def _cut(num: int, parts: int, part: int) -> range:
    """Part ``part`` of ``num`` things cut into equal runs."""
    return range(num * part // parts, num * (part + 1) // parts)


def _windows(steps: range, bounds: list[int], shuffle_rows: int) -> Iterator[range]:
    """Runs of steps that hold ``shuffle_rows`` rows together, the last one less."""
    start = steps.start
    for stop in range(steps.start + 1, steps.stop + 1):
        if bounds[stop] - bounds[start] >= shuffle_rows or stop == steps.stop:
            yield range(start, stop)
            start = stop


def _slices(ends: list[int], start: int, stop: int) -> Iterator[tuple[int, slice]]:
    """Rows ``start .. stop`` of things laid end to end: which thing, and which of its rows."""
    for i in range(bisect_right(ends, start), bisect_left(ends, stop) + 1):
        before = ends[i - 1] if i else 0
        yield i, slice(max(start - before, 0), min(stop, ends[i]) - before)


def _last(ragged: Ragged) -> Ints:
    """The last value of each row, 0 where a row is empty."""
    last = np.zeros(len(ragged.lengths), dtype=np.int64)
    full = ragged.lengths > 0
    last[full] = ragged.values[(ragged.starts + ragged.lengths - 1)[full]]
    return last


def _jagged(keys: list[str], ids: dict[str, Ragged]) -> KeyedJaggedTensor:
    joined = Ragged.concatenate([ids[key] for key in keys])
    return KeyedJaggedTensor(keys, torch.from_numpy(joined.values), lengths=torch.from_numpy(joined.lengths))

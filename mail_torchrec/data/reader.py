"""Parquet -> batches: row groups dealt to ranks and workers, shuffled by epoch, every rank the same number of steps.

How an epoch is dealt. The row groups, in an order shuffled by (seed, epoch), form one sequence of N rows. It is cut into equal
runs, one a rank (a row group on a border is read by both sides), each run into the same number of steps
``ceil(N / (ranks * batch_size))``, again of equal size. So no rank runs out before another, every row is read once, and there
is no small last batch: the tail is spread over all batches, which hold ``batch_size`` rows or a few less. Where N is no
multiple of the ranks, the runs that are one row short repeat their last row with weight 0: row-wise sharded tables need
batches of one size on all ranks. Weight 0 keeps it out of losses and figures.

With workers, each reads a contiguous part of its rank's steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.data.batch import Batch, MatchIds
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.lookups import Lookups
from mail_torchrec.data.negatives import NegativeSampler
from mail_torchrec.data.schema import Kind, Schema
from mail_torchrec.data.source import RowGroup, Source
from mail_torchrec.data.values import Bools, Ints, Ragged
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


@dataclass(frozen=True)
class _Slice:
    """Rows ``start .. stop`` of one row group."""

    group: RowGroup
    start: int
    stop: int


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
        self._list_columns = [name for name in schema.id_columns if schema.columns[name].kind is Kind.LIST]
        self.count_names = [f"unknown/{name}" for name in schema.id_columns] + [f"cut/{name}" for name in self._list_columns]

    def __len__(self) -> int:
        return self._num_steps

    def set_epoch(self, epoch: int) -> None:
        """Chooses the shuffle of the next iteration."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        bounds = self._step_bounds()
        worker = get_worker_info()
        if worker is not None:
            part = _cut(len(bounds) - 1, worker.num_workers, worker.id)
            first_step, bounds = part.start, bounds[part.start : part.stop + 1]
        else:
            first_step = 0
        order = self._group_order()
        decoded: dict[RowGroup, Window] = {}
        run = self._run()
        for steps in _windows(bounds, self._settings.shuffle_rows):
            start, stop = bounds[steps.start], bounds[steps.stop]
            window = self._read(_slices(order, min(start, run.stop - 1), min(stop, run.stop)), decoded)
            permutation = self._permutation(first_step + steps.start, stop - start)
            for step in steps:
                rows = permutation[bounds[step] - start : bounds[step + 1] - start]
                yield self._batch(window.take(np.minimum(rows, len(window) - 1)), rows < run.stop - start, first_step + step)

    def _run(self) -> range:
        """The rows of this rank, in the order of the epoch."""
        return _cut(self._source.num_rows, self._share.world_size, self._share.rank)

    def _step_bounds(self) -> list[int]:
        """Where each step begins, and where the last one ends: at most one row behind the run."""
        longest = -(-self._source.num_rows // self._share.world_size)
        return [self._run().start + longest * step // self._num_steps for step in range(self._num_steps + 1)]

    def _group_order(self) -> list[RowGroup]:
        groups = self._source.row_groups
        if not self._shuffle:
            return groups
        return [groups[i] for i in np.random.default_rng([self._seed, self._epoch]).permutation(len(groups))]

    def _permutation(self, step: int, num_rows: int) -> Ints:
        if not self._shuffle:
            return np.arange(num_rows)
        return self._random(step, stream=0).permutation(num_rows)

    def _random(self, step: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, self._epoch, self._share.rank, step, stream])

    def _read(self, slices: Sequence[_Slice], decoded: dict[RowGroup, Window]) -> Window:
        """Rows of several row groups; ``decoded`` keeps the last row group, on whose rows the next window goes on."""
        parts = []
        for part in slices:
            if part.group not in decoded:
                window = self._encode(self._source.read(part.group), self._source.file(part.group))
                decoded.clear()
                decoded[part.group] = window
            parts.append(decoded[part.group].take(np.arange(part.start, part.stop)))
        return Window.concatenate(parts)

    def _batch(self, window: Window, is_real_R: Bools, step: int) -> Batch:
        ids = {name: (ragged.values, ragged.lengths) for name, ragged in window.ids.items()}
        match = {}
        for stream, sequence in enumerate(self._lookups.match, start=1):
            match[sequence] = self._match(window, sequence, self._random(step, stream), ids)
        unknown = [window.num_unknown(name) for name in self._schema.id_columns]
        cut = [int(window.num_cut[name].sum()) for name in self._list_columns]
        return Batch(
            _jagged(list(self._lookups.pooled), ids),
            _jagged(list(self._lookups.unpooled), ids),
            torch.from_numpy(window.numeric_RN),
            torch.from_numpy(window.labels_R).float(),
            torch.from_numpy(is_real_R).float(),
            torch.from_numpy(window.users_R),
            torch.from_numpy(window.is_new_R),
            torch.from_numpy(window.is_cold_R),
            match,
            torch.tensor(unknown + cut),
        )

    def _match(self, window: Window, sequence: str, random: np.random.Generator, ids: dict[str, tuple[Ints, Ints]]) -> MatchIds:
        """Adds the keys of a sequence's match loss to ``ids``."""
        keys, num_rows = self._lookups.match[sequence], len(window)
        last = _last(window.ids[sequence])
        ids[keys.target] = ids[self._schema.target_of(sequence)]
        ids[keys.last] = last, np.ones(num_rows, dtype=np.int64)
        if (sampler := self._samplers.get(sequence)) is None:
            ids[keys.negatives] = np.zeros(0, dtype=np.int64), np.zeros(num_rows, dtype=np.int64)
            none = torch.zeros(0)
            return MatchIds(torch.from_numpy(last), none.long(), torch.zeros(num_rows), none)
        negatives = sampler.sample(random)
        ids[keys.negatives] = negatives, len(negatives) * np.arange(1, num_rows + 1) // num_rows - len(negatives) * np.arange(num_rows) // num_rows
        log_q = [torch.from_numpy(sampler.log_expected(rows)) for rows in (last, negatives)]
        return MatchIds(torch.from_numpy(last), torch.from_numpy(negatives), *log_q)


def _cut(num: int, parts: int, part: int) -> range:
    """Part ``part`` of ``num`` things cut into equal runs."""
    return range(num * part // parts, num * (part + 1) // parts)


def _windows(bounds: list[int], shuffle_rows: int) -> Iterator[range]:
    """Runs of steps that hold ``shuffle_rows`` rows together, the last one less."""
    start = 0
    for step in range(1, len(bounds)):
        if bounds[step] - bounds[start] >= shuffle_rows or step == len(bounds) - 1:
            yield range(start, step)
            start = step


def _slices(order: list[RowGroup], start: int, stop: int) -> list[_Slice]:
    """Rows ``start .. stop`` of the row groups laid end to end."""
    slices, before = [], 0
    for group in order:
        first, last = max(start - before, 0), min(stop - before, group.num_rows)
        if first < last:
            slices.append(_Slice(group, first, last))
        before += group.num_rows
    return slices


def _last(ragged: Ragged) -> Ints:
    """The last value of each row, 0 where a row is empty."""
    last = np.zeros(len(ragged.lengths), dtype=np.int64)
    full = ragged.lengths > 0
    last[full] = ragged.values[(ragged.starts + ragged.lengths - 1)[full]]
    return last


def _jagged(keys: list[str], ids: dict[str, tuple[Ints, Ints]]) -> KeyedJaggedTensor:
    def joined(part: int) -> Tensor:
        return torch.from_numpy(np.concatenate([ids[key][part] for key in keys]))

    return KeyedJaggedTensor(keys=keys, values=joined(0), lengths=joined(1))

"""Parquet -> batches: the rows of an epoch, dealt to ranks and reader processes (``data/deal.py``), shuffled, cut into batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import IterableDataset, get_worker_info
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.data.alike import USER_SIDE, alike_rows
from mail_torchrec.data.batch import Batch, MatchIds, Shared
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.deal import Deal, Layout, Piece, Taken, num_steps
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.lookups import Lookups
from mail_torchrec.data.negatives import NegativeSampler
from mail_torchrec.data.schema import Group, Schema
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
    """Shuffled rows of one user stay together within those: users come in random order, and so do the rows of each. Rows of a batch that
    hold the same of one user then share it: its ids are looked up once, and towers work once on it."""
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
        self._rank, self._shuffle, self._seed, self._samplers = share.rank, shuffle, seed, samplers or {}
        self.layout = Layout(
            ranks=share.world_size, workers=max(settings.num_workers, 1), batch_size=batch_size, shuffle_rows=settings.shuffle_rows
        )
        self.set_epoch(0)
        self._scalars, self._lists, self._of_users = schema.scalars, schema.lists, set(schema.names(*USER_SIDE))
        self._pooled, self._unpooled = list(lookups.pooled), list(lookups.unpooled)
        self.count_names = [f"unknown/{name}" for name in self._scalars + self._lists] + [f"cut/{name}" for name in self._lists]
        self.count_names += [f"unclicked/{schema.conversion}"] if schema.conversion else []
        self._by_user = shuffle and settings.group_by_user
        self.count_names += [f"distinct/{schema.group_key}", f"states/{schema.group_key}"] if settings.group_by_user else []

    def __len__(self) -> int:
        return num_steps(self._source.num_rows, self.layout)

    @property
    def path(self) -> str:
        """Where its rows are."""
        return self._source.path

    @property
    def steps_left(self) -> int:
        """Steps that the next iteration has."""
        return len(self._deal) - self._done

    def set_epoch(self, epoch: int, taken: Sequence[Taken] = ()) -> None:
        """Chooses the shuffle of the next iteration, and where it begins.

        Args:
            epoch: from 0.
            taken: what was trained on in this epoch, see :meth:`taken`. Under the layout of the last of them the next batches are those
                that would have followed; under another one the rows that are left are dealt anew, each of them once.
        """
        self._epoch, self._done, self._before = epoch, 0, tuple(taken)
        self._deal = Deal(self._shuffled_groups(), taken[0].layout if taken else self.layout)
        layouts = [*(part.layout for part in taken), self.layout]
        for part, layout in zip(taken, layouts[1:], strict=True):
            if part is taken[-1] and layout == part.layout:
                self._done, self._before = part.steps, tuple(taken[:-1])
            else:
                self._deal = Deal(list(self._left(part.steps)), layout, self._deal.first_step + part.steps)

    def taken(self, steps: int) -> tuple[Taken, ...]:
        """What was trained on in this epoch when ``steps`` steps of the iteration are done."""
        return (*self._before, Taken(layout=self.layout, steps=self._done + steps))

    def __iter__(self) -> Iterator[Batch]:
        info, deal = get_worker_info(), self._deal
        assert deal.layout.workers == (info.num_workers if info else 1), "data.num_workers is not the DataLoader's"
        # Reader processes take turns from the first on, so the first of them takes the part of the one whose turn it is.
        turns = deal.turns()[self._done :]
        part = (turns[0][0] + (info.id if info else 0)) % deal.layout.workers if turns else 0
        first, bounds, run = deal.untaken(self._done)[part], deal.bounds(self._rank), deal.run(self._rank)
        decode = lru_cache(maxsize=1)(self._decode)  # a row group on the border of two windows is decoded once
        for steps in deal.windows(self._rank, part):
            if steps.stop <= first:
                continue
            start = bounds[steps.start]
            window = self._window(self._rank, steps, decode)
            permutation = self._permutation(self._rank, deal.first_step + steps.start, bounds[steps.stop] - start, window)
            alike = self._alike(window)
            for step in range(max(first, steps.start), steps.stop):
                rows = permutation[bounds[step] - start : bounds[step + 1] - start]
                places = np.minimum(rows, len(window) - 1)
                yield self._batch(window.take(places), alike[places], rows < run.stop - start, deal.first_step + step)

    def _shuffled_groups(self) -> list[Piece]:
        groups = self._source.row_groups
        if self._shuffle:
            groups = [groups[i] for i in np.random.default_rng([self._seed, self._epoch]).permutation(len(groups))]
        return [Piece(group, range(group.num_rows)) for group in groups]

    def _left(self, steps: int) -> Iterator[Piece]:
        """What ``steps`` steps of the deal leave over."""
        deal = self._deal
        parts = [(part, first, rank) for rank in range(deal.layout.ranks) for part, first in enumerate(deal.untaken(steps))]
        for part, first, rank in parts:
            bounds, run = deal.bounds(rank), deal.run(rank)
            for window in deal.windows(rank, part):
                start, stop = bounds[window.start], min(bounds[window.stop], run.stop)
                if first <= window.start:
                    yield from deal.part_of(range(start, stop))
                elif first < window.stop:  # some of its shuffled rows were taken
                    rows = self._window(rank, window, self._decode) if self._by_user else None
                    order = self._permutation(rank, deal.first_step + window.start, bounds[window.stop] - start, rows)
                    places = start + np.sort(order[bounds[first] - start :])
                    yield from deal.part_of(places[places < stop])

    def _window(self, rank: int, steps: range, decode: Callable[[RowGroup], Window]) -> Window:
        """The rows of these steps."""
        bounds, last = self._deal.bounds(rank), max(self._deal.run(rank).stop - 1, 0)
        slices = self._deal.slices(min(bounds[steps.start], last), min(bounds[steps.stop], last + 1))
        return Window.concatenate([decode(piece.group).take(piece.places(rows)) for _, piece, rows in slices])

    def _decode(self, group: RowGroup) -> Window:
        return self._encode(self._source.read(group), self._source.file(group))

    def _permutation(self, rank: int, step: int, num_rows: int, window: Window | None) -> Ints:
        """An order of a window's rows; one more than it holds where its last row is repeated. Without ``group_by_user`` of no content."""
        if not self._shuffle:
            return np.arange(num_rows)
        random = self._random(rank, step, stream=0)
        order = random.permutation(num_rows)
        if not self._by_user:
            return order
        assert window is not None
        users, user_R = np.unique(window.users_R, return_inverse=True)
        places = random.permutation(len(users))[user_R[np.minimum(order, len(window) - 1)]]
        return order[np.argsort(places, kind="stable")]

    def _random(self, rank: int, step: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, self._epoch, rank, step, stream])

    def _alike(self, window: Window) -> Ints:
        """Equal for rows that hold the same of one user; each row is alone where they are not grouped."""
        if not self._settings.group_by_user:
            return np.arange(len(window))
        of_users = [name in self._of_users for name in self._scalars]
        num_numeric = len(self._schema.numeric(Group.ATTRIBUTE))  # the first ones
        arrays = [window.is_new_R, window.scalars_RC[:, of_users], window.numeric_RN[:, :num_numeric]]
        return alike_rows(window.users_R, arrays, [window.lists[name] for name in self._lists if name in self._of_users])

    def _batch(self, window: Window, alike_R: Ints, is_real_R: Bools, step: int) -> Batch:
        first_U, user_of_R = self._users(alike_R)
        ids = self._ids(window, first_U)
        match = {}
        for stream, sequence in enumerate(self._lookups.match, start=1):
            match[sequence] = self._match(len(window), sequence, self._random(self._rank, step, stream), ids)
        of_users = self._of_users | {keys.last for keys in self._lookups.match.values()}
        pooled, unpooled = (_jagged(keys, ids, of_users, len(window), first_U) for keys in (self._pooled, self._unpooled))
        return Batch(
            pooled,
            unpooled,
            torch.from_numpy(window.numeric_RN),
            torch.from_numpy(window.labels_R).float(),
            torch.from_numpy(window.labels_R & window.conversions_R).float(),
            torch.from_numpy(is_real_R).float(),
            torch.from_numpy(window.users_R),
            torch.from_numpy(window.is_new_R),
            torch.from_numpy(window.is_cold_R),
            match,
            torch.from_numpy(self._counts(window, is_real_R, first_U, user_of_R, ids)),
            Shared(torch.from_numpy(first_U), torch.from_numpy(user_of_R)) if self._settings.group_by_user else None,
        )

    def _users(self, alike_R: Ints) -> tuple[Ints, Ints]:
        """The first row of each user, rising, and the place of each row's user among them; each row has its own where none are shared."""
        rows_R = np.arange(len(alike_R))
        if not self._settings.group_by_user:
            return rows_R, rows_R
        _, first_A, state_R = np.unique(alike_R, return_index=True, return_inverse=True)
        order_U = np.argsort(first_A)
        place_A = np.empty_like(order_U)
        place_A[order_U] = rows_R[: len(order_U)]
        return first_A[order_U], place_A[state_R]

    def _ids(self, window: Window, first_U: Ints) -> dict[str, Ragged]:
        """Column -> ids, one entry a user in columns of the user's side and one a row in the others."""
        one_a_row = np.ones(len(window), dtype=np.int64)
        ids = {name: Ragged(column, one_a_row) for name, column in zip(self._scalars, window.scalars_RC.T, strict=True)} | window.lists
        return {name: ragged.take(first_U) if name in self._of_users else ragged for name, ragged in ids.items()}

    def _counts(self, window: Window, is_real_R: Bools, first_U: Ints, user_of_R: Ints, ids: dict[str, Ragged]) -> Ints:
        """In the order of ``count_names``; of real rows."""
        real_U = np.bincount(user_of_R, weights=is_real_R, minlength=len(first_U)).astype(np.int64)
        unknown = np.count_nonzero(window.scalars_RC[is_real_R] == UNKNOWN_ROW, axis=0)
        unknown_in_lists = [
            _unknown(ids[name]) @ (real_U if name in self._of_users else is_real_R.astype(np.int64)) for name in self._lists
        ]
        cut = np.count_nonzero(window.is_cut_RL[is_real_R], axis=0)
        unclicked = [np.count_nonzero(window.conversions_R & ~window.labels_R & is_real_R)] if self._schema.conversion else []
        users = [len(np.unique(window.users_R[is_real_R])), np.count_nonzero(real_U)] if self._settings.group_by_user else []
        return np.concatenate([unknown, unknown_in_lists, cut, unclicked, users]).astype(np.int64)

    def _match(self, num_rows: int, sequence: str, random: np.random.Generator, ids: dict[str, Ragged]) -> MatchIds:
        """Adds the keys of a sequence's match loss to ``ids``."""
        keys = self._lookups.match[sequence]
        last_U = _last(ids[sequence])
        sampler = self._samplers.get(sequence)
        negatives = sampler.sample(random) if sampler else np.zeros(0, dtype=np.int64)
        ids[keys.target] = ids[self._schema.target_of(sequence)]
        ids[keys.last] = Ragged(last_U, np.ones(len(last_U), dtype=np.int64))
        ids[keys.negatives] = Ragged(negatives, np.diff(len(negatives) * np.arange(num_rows + 1) // num_rows))
        log_q = [sampler.log_expected(rows) if sampler else np.zeros(len(rows), dtype=np.float32) for rows in (last_U, negatives)]
        return MatchIds(*(torch.from_numpy(part) for part in (last_U, negatives, *log_q)))


def _last(ragged: Ragged) -> Ints:
    """The last value of each row, 0 where a row is empty."""
    last = np.zeros(len(ragged.lengths), dtype=np.int64)
    full = ragged.lengths > 0
    last[full] = ragged.stored[(ragged.starts + ragged.lengths - 1)[full]]
    return last


def _unknown(ragged: Ragged) -> Ints:
    """How many values of each row are the unknown row."""
    is_unknown = ragged.values == UNKNOWN_ROW
    if not is_unknown.any():
        return np.zeros_like(ragged.lengths)
    before = np.concatenate([[0], np.cumsum(is_unknown)])
    ends = np.cumsum(ragged.lengths)
    unknown: Ints = before[ends] - before[ends - ragged.lengths]
    return unknown


def _jagged(keys: list[str], ids: dict[str, Ragged], of_users: set[str], num_rows: int, first_U: Ints) -> KeyedJaggedTensor:
    lengths_KR = np.zeros((len(keys), num_rows), dtype=np.int64)
    for key, lengths_R in zip(keys, lengths_KR, strict=True):
        lengths_R[first_U if key in of_users else slice(None)] = ids[key].lengths
    values = np.concatenate([ids[key].values for key in keys])
    return KeyedJaggedTensor(keys, torch.from_numpy(values), lengths=torch.from_numpy(lengths_KR.reshape(-1)))

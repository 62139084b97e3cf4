"""Parquet -> batches: the rows of an epoch, dealt to ranks and reader processes (``data/reading/partition.py``), shuffled, cut into batches."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from pydantic import Field
from torch.utils.data import IterableDataset, get_worker_info

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.negatives import NegativeSampler
from mail_torchrec.data.parquet.arrow import Bools, Ints
from mail_torchrec.data.parquet.source import RowGroup, Source
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.reading.collate import BatchCollator
from mail_torchrec.data.reading.partition import (
    ConsumedSteps,
    EpochPartition,
    Layout,
    Piece,
    num_steps,
)
from mail_torchrec.data.reading.prefetch import Prefetcher
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Schema
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
    """A row is a new user's when all its sequences together hold at most so many behaviours (unless
    the schema has a new_user column)."""
    shuffle_buffer_size: int = Field(default=65_536, ge=1)
    """Rows shuffled together; row groups are shuffled too."""
    group_by_user: bool = False
    """Shuffled rows of one user stay together within those: users come in random order, and so do
    the rows of each. Rows of a batch that hold the same of one user then share it: its ids are
    looked up once, and towers work once on it."""
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
class _Rows:
    """A window in the order of an epoch."""

    window: Chunk
    alike_R: Ints
    is_real_R: Bools


@dataclass(frozen=True)
class _Begun:
    """The windows of an iteration, one of them ahead of need."""

    epoch: int
    taken: tuple[ConsumedSteps, ...]
    windows: list[range]
    """Their steps."""
    rows: Prefetcher[range, _Rows]

    def is_of(self, epoch: int, taken: Sequence[ConsumedSteps]) -> bool:
        """Whether they are what is left of that epoch."""
        return (self.epoch, self.taken) == (epoch, tuple(taken))


class Reader(IterableDataset[Batch]):
    """The batches of one rank.

    Args:
        source: opened files.
        schema: their columns.
        encoders: raw values -> rows.
        feature_tables: the keys to write.
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
        feature_tables: FeatureTables,
        settings: DataSettings,
        *,
        share: Share,
        batch_size: int,
        shuffle: bool,
        seed: int,
        samplers: dict[str, NegativeSampler] | None = None,
    ) -> None:
        if source.num_rows < share.world_size:
            raise ValueError(
                f"'{source.path}' holds {source.num_rows} rows for {share.world_size} ranks; use "
                "fewer ranks or more rows"
            )
        self._source = source
        self._encode = ChunkEncoder(
            schema, encoders, settings.cold_start, settings.new_user_max_behaviours
        )
        self._batching = BatchCollator(
            schema, feature_tables, samplers or {}, group_by_user=settings.group_by_user
        )
        self._rank, self._shuffle, self._seed = share.rank, shuffle, seed
        self._in_process = not settings.num_workers
        self._begun: _Begun | None = None
        self.layout = Layout(
            ranks=share.world_size,
            workers=max(settings.num_workers, 1),
            batch_size=batch_size,
            shuffle_buffer_size=settings.shuffle_buffer_size,
        )
        self.set_epoch(0)
        self._by_user = shuffle and settings.group_by_user

    def __len__(self) -> int:
        return num_steps(self._source.num_rows, self.layout)

    @property
    def count_names(self) -> list[str]:
        """What the entries of ``Batch.counts`` count."""
        return self._batching.count_names

    @property
    def path(self) -> str:
        """Where its rows are."""
        return self._source.path

    @property
    def steps_left(self) -> int:
        """Steps that the next iteration has."""
        return len(self._deal) - self._done

    def set_epoch(
        self, epoch: int, taken: Sequence[ConsumedSteps] = (), *, followed: bool = False
    ) -> None:
        """Chooses the shuffle of the next iteration, and where it begins.

        Args:
            epoch: from 0.
            taken: what was trained on in this epoch, see :meth:`taken`. Under the layout of the
                last of them the next batches are those that would have followed; under another one
                the rows that are left are dealt anew, each of them once.
            followed: the next epoch comes after this one, whose end so prepares for it.
        """
        if self._begun is not None and not self._begun.is_of(epoch, taken):
            self._begun.rows.close()
            self._begun = None
        self._epoch, self._taken, self._followed = epoch, tuple(taken), followed
        self._done, self._before = 0, self._taken
        self._deal = EpochPartition(
            self._shuffled_groups(), taken[0].layout if taken else self.layout
        )
        layouts = [*(part.layout for part in taken), self.layout]
        for part, layout in zip(taken, layouts[1:], strict=True):
            if part is taken[-1] and layout == part.layout:
                self._done, self._before = part.steps, tuple(taken[:-1])
            else:
                self._deal = EpochPartition(
                    list(self._left(part.steps)), layout, self._deal.first_step + part.steps
                )

    def taken(self, steps: int) -> tuple[ConsumedSteps, ...]:
        """What was trained on in this epoch when ``steps`` steps of the iteration are done."""
        return (*self._before, ConsumedSteps(layout=self.layout, steps=self._done + steps))

    def __iter__(self) -> Iterator[Batch]:
        info, deal = get_worker_info(), self._deal
        assert deal.layout.workers == (info.num_workers if info else 1), (
            "data.num_workers is not the DataLoader's"
        )
        # Reader processes take turns from the first on, so the first of them takes the part of the
        # one whose turn it is.
        turns = deal.turns()[self._done :]
        part = (turns[0][0] + (info.id if info else 0)) % deal.layout.workers if turns else 0
        first, bounds = deal.untaken(self._done)[part], deal.bounds(self._rank)
        if self._begun is not None and self._begun.is_of(self._epoch, self._taken):
            begun, self._begun = self._begun, None
        else:
            begun = self._begin(part)
        try:
            for steps, rows in zip(begun.windows, begun.rows, strict=True):
                if self._followed and steps is begun.windows[-1]:
                    self._prepare_following()
                for step in range(max(first, steps.start), steps.stop):
                    of_step = slice(
                        bounds[step] - bounds[steps.start], bounds[step + 1] - bounds[steps.start]
                    )
                    random = partial(self._random, self._rank, deal.first_step + step)
                    yield self._batching(
                        rows.window.take(of_step),
                        rows.alike_R[of_step],
                        rows.is_real_R[of_step],
                        random,
                    )
        finally:
            begun.rows.close()

    def prepare(self) -> None:
        """Begins to decode the first window of the next iteration. Reader processes do so when they are started, and not before."""
        if self._in_process and self.steps_left and self._begun is None:
            self._begun = self._begin(0)

    def _prepare_following(self) -> None:
        """The same for the next epoch."""
        following = copy(self)
        following.set_epoch(self._epoch + 1)
        following.prepare()
        self._begun = following._begun

    def _begin(self, part: int) -> _Begun:
        """The windows of a reader process that are left."""
        deal, first = self._deal, self._deal.untaken(self._done)[part]
        decode = lru_cache(maxsize=1)(
            self._decode
        )  # a row group on the border of two windows is decoded once
        windows = [steps for steps in deal.windows(self._rank, part) if steps.stop > first]
        return _Begun(
            self._epoch,
            self._taken,
            windows,
            Prefetcher(lambda steps: self._shuffled(deal, steps, decode), windows),
        )

    def _shuffled_groups(self) -> list[Piece]:
        groups = self._source.row_groups
        if self._shuffle:
            groups = [
                groups[i]
                for i in np.random.default_rng([self._seed, self._epoch]).permutation(len(groups))
            ]
        return [Piece(group, range(group.num_rows)) for group in groups]

    def _left(self, steps: int) -> Iterator[Piece]:
        """What ``steps`` steps of the deal leave over."""
        deal = self._deal
        parts = [
            (part, first, rank)
            for rank in range(deal.layout.ranks)
            for part, first in enumerate(deal.untaken(steps))
        ]
        for part, first, rank in parts:
            bounds, run = deal.bounds(rank), deal.run(rank)
            for window in deal.windows(rank, part):
                start, stop = bounds[window.start], min(bounds[window.stop], run.stop)
                if first <= window.start:
                    yield from deal.part_of(range(start, stop))
                elif first < window.stop:  # some of its shuffled rows were taken
                    rows = self._window(rank, window, self._decode) if self._by_user else None
                    order = self._permutation(
                        rank, deal.first_step + window.start, bounds[window.stop] - start, rows
                    )
                    places = start + np.sort(order[bounds[first] - start :])
                    yield from deal.part_of(places[places < stop])

    def _shuffled(
        self, deal: EpochPartition, steps: range, decode: Callable[[RowGroup], Chunk]
    ) -> "_Rows":
        """The rows of these steps in the order of the epoch."""
        bounds, run = deal.bounds(self._rank), deal.run(self._rank)
        window, start = self._window(self._rank, steps, decode), bounds[steps.start]
        order = self._permutation(
            self._rank, deal.first_step + steps.start, bounds[steps.stop] - start, window
        )
        is_real_R, window = (
            order < run.stop - start,
            window.take(np.minimum(order, len(window) - 1)),
        )
        return _Rows(window, self._batching.alike(window), is_real_R)

    def _window(self, rank: int, steps: range, decode: Callable[[RowGroup], Chunk]) -> Chunk:
        """The rows of these steps."""
        bounds, last = self._deal.bounds(rank), max(self._deal.run(rank).stop - 1, 0)
        slices = self._deal.slices(
            min(bounds[steps.start], last), min(bounds[steps.stop], last + 1)
        )
        return Chunk.concatenate(
            [decode(piece.group).take(piece.places(rows)) for _, piece, rows in slices]
        )

    def _decode(self, group: RowGroup) -> Chunk:
        return self._encode(self._source.read(group), self._source.file(group))

    def _permutation(self, rank: int, step: int, num_rows: int, window: Chunk | None) -> Ints:
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

"""Partition of an epoch's rows over ranks, reader processes and steps, and resumption within it.

Slices of row groups, end to end, form one sequence of N rows. It is cut into equal ranges, one a
rank (a row group on a border is read by both ranks), and each range into the same number of steps,
``ceil(N / (ranks * batch_size))``, again of equal size. So no rank runs out before another, every
row is read once, and there is no small last batch: the remainder is spread over all batches, which
hold ``batch_size`` rows or a few less. Where N is no multiple of the ranks, the ranges that are one
row short repeat their last row with weight 0: row-wise sharded tables need batches of one size on
all ranks. Weight 0 keeps it out of losses and metrics; only batch norm's statistics see it.

With several reader processes, each reads consecutive steps of its rank, and they take turns. The
rows of consecutive steps that are shuffled together are a chunk.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from pydantic import Field

from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.source import RowGroup
from mail_torchrec.settings import Settings


@dataclass(frozen=True)
class RankInfo:
    """Rank that a reader reads for, and the number of ranks."""

    rank: int = 0
    world_size: int = 1


class ReaderLayout(Settings):
    """Numbers that decide, with seed and epoch, which rank reads which rows in which order."""

    ranks: int = Field(ge=1, le=2**16)
    workers: int = Field(ge=1, le=2**10)
    """Reader processes of each rank; 1 where the training process reads."""
    batch_size: int = Field(ge=1, le=2**31)
    """Maximum number of rows of a rank's batch."""
    shuffle_buffer_size: int = Field(ge=1, le=2**53)
    """Minimum number of rows of a chunk, but for the last one of a reader process."""


class ConsumedSteps(Settings):
    """First steps of a partition that were trained on."""

    layout: ReaderLayout
    steps: int = Field(ge=0, le=2**53)


class DataPosition(Settings):
    """Position of a run in its data, saved in checkpoints."""

    epoch: int = Field(ge=0, le=2**53)
    """From 0."""
    consumed: tuple[ConsumedSteps, ...] = Field(default=(), max_length=10_000)
    """Steps trained on in the epoch; each entry partitions the rows that the one before left."""


@dataclass(frozen=True)
class RowGroupSlice:
    """Some rows of a row group, in the order of the file."""

    group: RowGroup
    rows: range | Ints
    """Their indices in the row group, rising, [rows]."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> range | Ints:
        """Returns the indices in the row group of a part of these rows, [rows]."""
        return self.rows[part]


@dataclass(frozen=True)
class EpochPartition:
    """Partitions row group slices over the ranks, reader processes and steps of a layout.

    Args:
        slices: end to end, the sequence of rows.
        layout: of the ranks.
        first_step: number of steps of the epoch that were trained on before; random draws are keyed
            by the step in the epoch.
    """

    slices: list[RowGroupSlice]
    layout: ReaderLayout
    first_step: int = 0

    @cached_property
    def ends(self) -> list[int]:
        """End of each slice in the sequence."""
        return list(accumulate(map(len, self.slices)))

    @property
    def num_rows(self) -> int:
        """Number of rows in the sequence."""
        return self.ends[-1] if self.slices else 0

    def __len__(self) -> int:
        """Number of steps."""
        return num_steps(self.num_rows, self.layout)

    def rank_rows(self, rank: int) -> range:
        """Returns a rank's rows in the sequence; none where there are fewer rows than ranks."""
        return _part_of(self.num_rows, self.layout.ranks, rank)

    def step_bounds(self, rank: int) -> list[int]:
        """Returns where each step of a rank begins in the sequence, and where the last one ends.

        It ends at most one row behind the rank's rows: the row that is repeated with weight 0.
        """
        start, longest = self.rank_rows(rank).start, -(-self.num_rows // self.layout.ranks)
        return [start + longest * step // max(len(self), 1) for step in range(len(self) + 1)]

    def worker_steps(self, worker: int) -> range:
        """Returns the steps of a reader process, the same on all ranks."""
        return _part_of(len(self), self.layout.workers, worker)

    def chunks(self, rank: int, worker: int) -> Iterator[range]:
        """Cuts the steps of a reader process into chunks of ``shuffle_buffer_size`` rows or more.

        The last chunk may have fewer.
        """
        steps, bounds = self.worker_steps(worker), self.step_bounds(rank)
        start = steps.start
        for stop in range(steps.start + 1, steps.stop + 1):
            is_full = bounds[stop] - bounds[start] >= self.layout.shuffle_buffer_size
            if is_full or stop == steps.stop:
                yield range(start, stop)
                start = stop

    def training_order(self) -> list[tuple[int, int]]:
        """Returns the steps of a rank in the order of training, as (reader process, step)."""
        parts = [self.worker_steps(worker) for worker in range(self.layout.workers)]
        return [
            (worker, part[i])
            for i in range(max(map(len, parts)))
            for worker, part in enumerate(parts)
            if i < len(part)
        ]

    def batch_rows(self, rank: int) -> Iterator[tuple[int, range]]:
        """Yields the reader process and the rows of each batch of a rank, in order of training.

        The rows are places in the sequence; a row that only fills its batch up has none.
        """
        bounds, last = self.step_bounds(rank), self.rank_rows(rank).stop
        for worker, step in self.training_order():
            yield worker, range(bounds[step], min(bounds[step + 1], last))

    def next_steps(self, num_consumed: int) -> list[int]:
        """Returns the next step of each reader process when the first steps are trained on.

        Args:
            num_consumed: steps trained on, in the order of training.
        """
        steps = [self.worker_steps(worker).start for worker in range(self.layout.workers)]
        for worker, step in self.training_order()[:num_consumed]:
            steps[worker] = step + 1
        return steps

    def slices_between(self, start: int, stop: int) -> Iterator[tuple[int, RowGroupSlice, slice]]:
        """Finds rows ``start .. stop`` of the sequence.

        Yields:
            Start of a row group slice in the sequence, the slice, and which of its rows.
        """
        for i in range(bisect_right(self.ends, start), bisect_left(self.ends, stop) + 1):
            before = self.ends[i - 1] if i else 0
            rows = slice(max(start - before, 0), min(stop, self.ends[i]) - before)
            yield before, self.slices[i], rows

    def select(self, rows: range | Ints) -> Iterator[RowGroupSlice]:
        """Selects rows of the sequence.

        Args:
            rows: their places in the sequence, rising, [rows].
        """
        if not len(rows):
            return
        for before, part, inside in self.slices_between(int(rows[0]), int(rows[-1]) + 1):
            if isinstance(rows, range):
                yield RowGroupSlice(part.group, part.rows[inside])
            elif len(chosen := rows[(rows >= before) & (rows < before + len(part))]):
                yield RowGroupSlice(part.group, np.asarray(part.rows)[chosen - before])


def num_steps(num_rows: int, layout: ReaderLayout) -> int:
    """Returns the number of steps that so many rows make."""
    return -(-num_rows // (layout.ranks * layout.batch_size))


def _part_of(num: int, parts: int, part: int) -> range:
    """Returns part ``part`` of ``num`` things that are cut into equal ranges."""
    return range(num * part // parts, num * (part + 1) // parts)

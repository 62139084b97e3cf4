"""How the rows of an epoch are dealt to ranks, reader processes and steps, and what is left of them when a run stops on the way.

The pieces (row groups, whole or in part) form one sequence of N rows. It is cut into equal runs,
one a rank (a piece on a border is read by both sides), each run into the same number of steps
``ceil(N / (ranks * batch_size))``, again of equal size. So no rank runs out before another, every
row is read once, and there is no small last batch: the tail is spread over all batches, which hold
``batch_size`` rows or a few less. Where N is no multiple of the ranks, the runs that are one row
short repeat their last row with weight 0: row-wise sharded tables need batches of one size on all
ranks. Weight 0 keeps it out of losses and figures; only batch norm's statistics see it.

With several reader processes, each reads a contiguous part of its rank's steps, and they take
turns. Steps whose rows are shuffled together are a window.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from pydantic import Field

from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.parquet.source import RowGroup
from mail_torchrec.settings import Settings


class Layout(Settings):
    """What decides who reads which rows in which order, beside the seed and the epoch."""

    ranks: int = Field(ge=1)
    workers: int = Field(ge=1)
    """Reader processes a rank; 1 where the training process reads too."""
    batch_size: int = Field(ge=1)
    shuffle_buffer_size: int = Field(ge=1)


class ConsumedSteps(Settings):
    """The first so many steps of a deal."""

    layout: Layout
    steps: int = Field(ge=0)


class Position(Settings):
    """Where a run stands in its data: an epoch, and the deals of which steps were taken in it, each of what the one before left over."""

    epoch: int = Field(ge=0)
    """From 0."""
    taken: tuple[ConsumedSteps, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Rows of a row group, in the order of the file."""

    group: RowGroup
    rows: range | Ints
    """Their places in the group."""

    def __len__(self) -> int:
        return len(self.rows)

    def places(self, part: slice) -> slice | Ints:
        """Where the rows of a part of it are in the group."""
        rows = self.rows[part]
        return slice(rows.start, rows.stop) if isinstance(rows, range) else rows


@dataclass(frozen=True)
class EpochPartition:
    """Pieces dealt under a layout.

    Args:
        pieces: one after another, the sequence of rows.
        layout: of the ranks.
        first_step: steps of the epoch that were taken before; random draws are keyed by the step in
            the epoch.
    """

    pieces: list[Piece]
    layout: Layout
    first_step: int = 0

    @cached_property
    def ends(self) -> list[int]:
        """Where each piece ends in the sequence."""
        return list(accumulate(map(len, self.pieces)))

    @property
    def num_rows(self) -> int:
        """Rows in the sequence."""
        return self.ends[-1] if self.pieces else 0

    def __len__(self) -> int:
        """Steps."""
        return num_steps(self.num_rows, self.layout)

    def run(self, rank: int) -> range:
        """The rows of a rank in the sequence; empty where there are fewer rows than ranks."""
        return _cut(self.num_rows, self.layout.ranks, rank)

    def bounds(self, rank: int) -> list[int]:
        """Where each step of a rank begins, and where the last one ends: at most one row behind the rank's run."""
        start, longest = self.run(rank).start, -(-self.num_rows // self.layout.ranks)
        return [start + longest * step // max(len(self), 1) for step in range(len(self) + 1)]

    def windows(self, rank: int, worker: int) -> Iterator[range]:
        """The steps of a reader process, cut into windows of ``shuffle_buffer_size`` rows, the last one less."""
        steps, bounds = self._part(worker), self.bounds(rank)
        start = steps.start
        for stop in range(steps.start + 1, steps.stop + 1):
            if (
                bounds[stop] - bounds[start] >= self.layout.shuffle_buffer_size
                or stop == steps.stop
            ):
                yield range(start, stop)
                start = stop

    def turns(self) -> list[tuple[int, int]]:
        """The steps of a rank in the order in which they are trained on: (reader process, step)."""
        parts = [self._part(worker) for worker in range(self.layout.workers)]
        rounds = range(max(map(len, parts)))
        return [
            (worker, part[turn])
            for turn in rounds
            for worker, part in enumerate(parts)
            if turn < len(part)
        ]

    def untaken(self, steps: int) -> list[int]:
        """The first step of each reader process behind the first ``steps`` steps of all."""
        first = [self._part(worker).start for worker in range(self.layout.workers)]
        for worker, step in self.turns()[:steps]:
            first[worker] = step + 1
        return first

    def slices(self, start: int, stop: int) -> Iterator[tuple[int, Piece, slice]]:
        """Rows ``start .. stop`` of the sequence: where a piece begins in it, the piece, and which of its rows."""
        for i in range(bisect_right(self.ends, start), bisect_left(self.ends, stop) + 1):
            before = self.ends[i - 1] if i else 0
            yield (
                before,
                self.pieces[i],
                slice(max(start - before, 0), min(stop, self.ends[i]) - before),
            )

    def part_of(self, places: range | Ints) -> Iterator[Piece]:
        """The pieces that hold these rows of the sequence; ``places`` rise."""
        if not len(places):
            return
        for before, piece, rows in self.slices(int(places[0]), int(places[-1]) + 1):
            if isinstance(places, range):
                yield Piece(piece.group, piece.rows[rows])
            elif len(inside := places[(places >= before) & (places < before + len(piece))]):
                yield Piece(piece.group, np.asarray(piece.rows)[inside - before])

    def _part(self, worker: int) -> range:
        return _cut(len(self), self.layout.workers, worker)


def num_steps(num_rows: int, layout: Layout) -> int:
    """Steps that so many rows are dealt to."""
    return -(-num_rows // (layout.ranks * layout.batch_size))


def _cut(num: int, parts: int, part: int) -> range:
    """Part ``part`` of ``num`` things cut into equal runs."""
    return range(num * part // parts, num * (part + 1) // parts)

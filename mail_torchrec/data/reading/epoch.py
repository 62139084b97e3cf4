"""Rows of one epoch: partitioned, read in chunks, shuffled, and partitioned anew when resumed.

Shapes: ``R`` rows of a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mail_torchrec.data.parquet.arrow import Bools, Ints
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.reading.decoder import RowGroupDecoder
from mail_torchrec.data.reading.partition import EpochPartition, ReaderLayout, RowGroupSlice
from mail_torchrec.data.reading.shuffle import EpochShuffle
from mail_torchrec.data.source import Source


@dataclass(frozen=True)
class EpochRows:
    """Reads the rows of one epoch under a partition."""

    source: Source
    encode: ChunkEncoder
    shuffle: EpochShuffle
    partition: EpochPartition

    @staticmethod
    def whole(
        source: Source, encode: ChunkEncoder, shuffle: EpochShuffle, layout: ReaderLayout
    ) -> "EpochRows":
        """Partitions all rows of the source."""
        partition = EpochPartition(shuffle.row_groups(source.row_groups), layout)
        return EpochRows(source, encode, shuffle, partition)

    def repartitioned(self, num_consumed: int, layout: ReaderLayout) -> "EpochRows":
        """Partitions the rows that remain when the first steps are trained on.

        Args:
            num_consumed: steps of this partition that were trained on.
            layout: of the new partition.
        """
        first_step = self.partition.first_step + num_consumed
        partition = EpochPartition(list(self._remaining(num_consumed)), layout, first_step)
        return replace(self, partition=partition)

    def decoder(self) -> RowGroupDecoder:
        """Makes a decoder of the row groups, for chunks in their order."""
        return RowGroupDecoder(self.source, self.encode)

    def shuffled(self, rank: int, steps: range, decoder: RowGroupDecoder) -> tuple[Chunk, Bools]:
        """Reads the rows of a chunk in the order of the epoch.

        Args:
            rank: that reads them.
            steps: of the chunk.
            decoder: :meth:`decoder`, the same for all chunks.

        Returns:
            The rows, and [R] False for a row that only fills the batch up.
        """
        partition = self.partition
        bounds, rows = partition.step_bounds(rank), partition.rank_rows(rank)
        chunk, start = self._chunk(rank, steps, decoder), bounds[steps.start]
        order_R = self._permutation(rank, steps, chunk.users_R)
        is_real_R: Bools = order_R < rows.stop - start
        return chunk.take(np.minimum(order_R, len(chunk) - 1)), is_real_R

    def _remaining(self, num_consumed: int) -> Iterator[RowGroupSlice]:
        partition = self.partition
        next_steps = partition.next_steps(num_consumed)
        for rank in range(partition.layout.ranks):
            for worker, next_step in enumerate(next_steps):
                for steps in partition.chunks(rank, worker):
                    yield from partition.select(self._remaining_rows(rank, steps, next_step))

    def _remaining_rows(self, rank: int, steps: range, next_step: int) -> range | Ints:
        """Returns the rows of a chunk's steps from ``next_step`` on, [rows] of the sequence."""
        bounds, last = self.partition.step_bounds(rank), self.partition.rank_rows(rank).stop
        start, stop = bounds[steps.start], min(bounds[steps.stop], last)
        if next_step <= steps.start:
            return range(start, stop)
        if next_step >= steps.stop:
            return range(0)
        # Some of the shuffled rows were trained on, so the shuffle is drawn again.
        needs_users = self.shuffle.enabled and self.shuffle.group_by_user
        users_R = self._chunk(rank, steps, self.decoder()).users_R if needs_users else None
        order_R = self._permutation(rank, steps, users_R)
        rows = start + np.sort(order_R[bounds[next_step] - start :])
        return rows[rows < stop]

    def _permutation(self, rank: int, steps: range, users_R: Ints | None) -> Ints:
        bounds = self.partition.step_bounds(rank)
        num_rows = bounds[steps.stop] - bounds[steps.start]
        first_step = self.partition.first_step + steps.start
        return self.shuffle.permutation(rank, first_step, num_rows, users_R)

    def _chunk(self, rank: int, steps: range, decoder: RowGroupDecoder) -> Chunk:
        """Reads the rows of these steps in the order of the sequence."""
        bounds = self.partition.step_bounds(rank)
        last = max(self.partition.rank_rows(rank).stop - 1, 0)
        start, stop = min(bounds[steps.start], last), min(bounds[steps.stop], last + 1)
        slices = self.partition.slices_between(start, stop)
        return Chunk.concatenate(
            [rows for _, part, taken in slices for rows in decoder.rows(part.group, part[taken])]
        )

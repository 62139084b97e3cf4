"""Decoding of row groups piece by piece: a large row group costs the memory of one piece.

Shapes: ``R`` rows of a piece.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.source import RowGroup, Source


class RowGroupDecoder:
    """Reads and encodes rows of row groups.

    A piece is kept until another one is needed, so that a piece on the border of two chunks is
    decoded once. Rows that lie before it are read from the beginning of their row group.

    Args:
        source: opened files.
        encode: encodes the rows of a piece.
    """

    def __init__(self, source: Source, encode: ChunkEncoder) -> None:
        self._source, self._encode = source, encode
        self._group: RowGroup | None = None
        self._tables: Iterator[pa.Table] = iter(())
        self._start = self._stop = 0
        self._table: pa.Table | None = None
        self._piece: Chunk | None = None

    def rows(self, group: RowGroup, indices: range | Ints) -> Iterator[Chunk]:
        """Reads some rows of a row group, in one or several parts.

        Args:
            group: of the source.
            indices: of the rows in the row group, rising, [rows].

        Raises:
            ValueError: they cannot be read, or hold a value that cannot be trained on.
        """
        if not len(indices):
            return
        if group != self._group or indices[0] < self._start:
            self._group, self._tables = group, self._source.pieces(group)
            self._next_piece(0)
        while True:
            if len(inside := _within(indices, self._start, self._stop)):
                yield self._encoded().take(_relative(inside, self._start))
            if indices[-1] < self._stop:
                return
            self._next_piece(self._stop)

    def _next_piece(self, start: int) -> None:
        self._piece = self._table = None  # not in memory together with the next one
        try:
            self._table = next(self._tables)
        except ValueError:
            assert self._group is not None
            self._source.whole(self._group)  # once more, with the row's number in the row group
            raise
        self._start, self._stop = start, start + len(self._table)

    def _encoded(self) -> Chunk:
        """Encodes the current piece, unless that was done before."""
        if self._piece is None:
            assert self._group is not None and self._table is not None
            file, is_part = self._source.file(self._group), len(self._table) < self._group.num_rows
            try:
                self._piece = self._encode(self._table, file)
            except ValueError:
                # Once more, for the message: with the row's number in the row group.
                if is_part or self._source.is_filtered:
                    self._encode(self._source.whole(self._group), file)
                raise
            self._table = None
        return self._piece


def _within(indices: range | Ints, start: int, stop: int) -> range | Ints:
    """Returns the indices from ``start`` to before ``stop``, [rows]."""
    if isinstance(indices, range):
        return range(max(indices.start, start), min(indices.stop, stop))
    first, end = np.searchsorted(indices, [start, stop])
    return indices[first:end]


def _relative(indices: range | Ints, start: int) -> slice | Ints:
    """Returns indices relative to a piece that starts there, [rows] or a slice."""
    if isinstance(indices, range):
        return slice(indices.start - start, indices.stop - start)
    return indices - start

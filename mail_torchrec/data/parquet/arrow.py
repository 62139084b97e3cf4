"""One Arrow column of one row group -> NumPy, checked and without a loop over rows."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.schema.schema import Transform

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass
class JaggedArray:
    """Rows of different lengths: slices of one array, end to end unless ``begins`` says where each one lies.

    ``[[7, 8], [], [9]]`` is ``JaggedArray([7, 8, 9], [2, 0, 1])``. Rows may share values, and taking
    rows moves none.
    """

    stored: Ints
    lengths: Ints
    begins: Ints | None = None

    @cached_property
    def starts(self) -> Ints:
        """Where each row begins in ``stored``."""
        starts: Ints = (
            np.cumsum(self.lengths) - self.lengths if self.begins is None else self.begins
        )
        return starts

    @cached_property
    def values(self) -> Ints:
        """The values of all rows, end to end."""
        return self.stored if self.begins is None else self.stored[self.positions]

    @property
    def positions(self) -> Ints:
        """Where each of ``values`` is stored."""
        ends = np.cumsum(self.lengths)
        positions: Ints = np.arange(self.lengths.sum()) + np.repeat(
            self.starts - (ends - self.lengths), self.lengths
        )
        return positions

    def take(self, rows: Ints | slice) -> "JaggedArray":
        """These rows, in this order."""
        return JaggedArray(self.stored, self.lengths[rows], self.starts[rows])

    def newest(self, limit: int | Ints) -> "JaggedArray":
        """Every row cut to its last ``limit`` values, one limit for all or one a row."""
        excess = np.maximum(self.lengths - limit, 0)
        return (
            JaggedArray(self.stored, self.lengths - excess, self.starts + excess)
            if excess.any()
            else self
        )

    def trimmed(self) -> "JaggedArray":
        """The same without stored values before the first that a row has and behind the last, which it so does not keep alive."""
        full = self.lengths > 0
        if self.begins is None or not full.any():
            return (
                self
                if self.begins is None
                else JaggedArray(self.stored[:0], self.lengths, np.zeros_like(self.lengths))
            )
        first, stop = int(self.starts[full].min()), int((self.starts + self.lengths)[full].max())
        return JaggedArray(
            self.stored[first:stop], self.lengths, np.where(full, self.starts - first, 0)
        )

    def last(self, default: int) -> Ints:
        """The last value of each row, ``default`` where a row is empty."""
        last, full = np.full(len(self.lengths), default, dtype=np.int64), self.lengths > 0
        last[full] = self.stored[(self.starts + self.lengths - 1)[full]]
        return last

    def count(self, value: int) -> Ints:
        """How many values of each row are ``value``."""
        found = self.values == value
        if not found.any():
            return np.zeros_like(self.lengths)
        before, ends = np.concatenate([[0], np.cumsum(found)]), np.cumsum(self.lengths)
        counts: Ints = before[ends] - before[ends - self.lengths]
        return counts

    @staticmethod
    def concatenate(parts: "list[JaggedArray]") -> "JaggedArray":
        """Rows of several parts, one after another."""
        trimmed = [part.trimmed() for part in parts]
        before = np.cumsum([0, *(len(part.stored) for part in trimmed)])
        starts = [part.starts + begin for part, begin in zip(trimmed, before[:-1], strict=True)]
        stored, lengths = (
            np.concatenate([part.stored for part in trimmed]),
            np.concatenate([part.lengths for part in trimmed]),
        )
        return JaggedArray(stored, lengths, np.concatenate(starts))


def plain_ids(column: pa.ChunkedArray, *, file: str, name: str) -> pa.Array:
    """Ids in one of two forms whatever the file's: int64 or large_string, in one chunk.

    Raises:
        ValueError: an unsigned id above the range of int64; with file and column.
    """
    if column.type in (pa.int64(), pa.large_string()):
        return one_chunk(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        return one_chunk(
            cast(column, pa.int64() if pa.types.is_integer(column.type) else pa.large_string())
        )
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{file}: column '{name}' should fit into signed 64-bit integers: {error}; store its "
            "ids as strings"
        ) from error


def cast(values: pa.Array | pa.ChunkedArray, kind: pa.DataType, *, safe: bool = True) -> Any:
    """Values as another type; no call into Arrow where they are of it: one request has a column after another."""
    return values if values.type == kind else values.cast(kind, safe=safe)


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column in one chunk, also where it has none."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def list_lengths(column: pa.ChunkedArray) -> Ints:
    """The length of each list of a column; a null list is an empty one."""
    lengths = pc.list_value_length(column)
    filled: Ints = (
        (pc.fill_null(lengths, 0) if lengths.null_count else lengths).to_numpy().astype(np.int64)
    )
    return filled


def newest_ids(
    column: pa.ChunkedArray, limit: int | Ints, *, file: str, name: str
) -> tuple[pa.Array, Ints]:
    """The newest ``limit`` ids of each list (one limit for all or one a row), end to end, and how many there are a row.

    Raises:
        ValueError: as :func:`plain_ids`.
    """
    ids = plain_ids(pc.list_flatten(column), file=file, name=name)
    kept = JaggedArray(np.zeros(0, dtype=np.int64), list_lengths(column)).newest(limit)
    return ids if kept.lengths.sum() == len(ids) else ids.take(
        pa.array(kept.positions)
    ), kept.lengths


def binary(column: pa.ChunkedArray, *, file: str, name: str) -> Bools:
    """A column of 0 and 1.

    Raises:
        ValueError: a null, or another value; with file, column, row and value.
    """
    expected, remedy = (
        f"{file}: column '{name}' should be 0 or 1",
        "drop such rows or repair them before training",
    )
    if column.null_count:
        row = int(np.argmax(pc.is_null(column).to_numpy()))
        raise ValueError(
            f"{expected}, received null in row {row} of its row group ({column.null_count} "
            f"nulls); {remedy}"
        )
    values = column.cast(pa.float64(), safe=False).to_numpy()
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise ValueError(
            f"{expected}, received {values[wrong[0]]:g} in row {wrong[0]} of its row group; "
            f"{remedy}"
        )
    ones: Bools = values == 1
    return ones


def numbers(
    column: pa.ChunkedArray, transform: Transform, *, file: str, name: str
) -> npt.NDArray[np.float64]:
    """A numeric column, transformed; a null comes back as NaN.

    Raises:
        ValueError: NaN or infinity in the file, or a negative number under ``log``; with file,
            column, row and value.
    """
    values = column.cast(pa.float64(), safe=False).to_numpy()
    missing = pc.is_null(column).to_numpy()
    wrong = np.flatnonzero(~missing & ~np.isfinite(values))
    if len(wrong):
        raise ValueError(
            f"{file}: column '{name}' should be finite, received {values[wrong[0]]} in row "
            f"{wrong[0]} of its row group; "
            "write null where a value is unknown (nulls become the training mean)"
        )
    if transform is Transform.NONE:
        return np.where(missing, np.nan, values)
    negative = np.flatnonzero(~missing & (values < 0))
    if len(negative):
        raise ValueError(
            f"{file}: column '{name}' should be >= 0 for transform 'log', received "
            f"{values[negative[0]]:g} in row {negative[0]} "
            "of its row group; use transform 'none' or null"
        )
    return np.log1p(np.where(missing, np.nan, values))

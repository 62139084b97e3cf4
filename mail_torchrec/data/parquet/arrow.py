"""Arrow columns of one row group as NumPy arrays, checked and without a loop over rows.

Shapes: ``R`` rows of the row group. Columns are ChunkedArrays of R rows.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
_FLOAT = pa.float64()


def cast(values: pa.Array | pa.ChunkedArray, kind: pa.DataType, *, safe: bool = True) -> Any:
    """Casts values to another type; values of that type already are returned without a copy.

    A request has many small columns, so a needless call into Arrow for each would cost more than
    the rest of its encoding.
    """
    return values if values.type == kind else values.cast(kind, safe=safe)


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """Returns a column as one array; copies only where the column has several chunks."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def list_lengths(column: pa.ChunkedArray) -> Ints:
    """Returns the length of each list of a column, [R]; a null list is an empty one."""
    lengths = pc.list_value_length(column)
    if lengths.null_count:
        lengths = pc.fill_null(lengths, 0)
    lengths_R: Ints = lengths.to_numpy().astype(np.int64)
    return lengths_R


def binary(column: pa.ChunkedArray, *, file: str, name: str) -> Bools:
    """Converts a column of 0 and 1, [R].

    Raises:
        ValueError: a null, or another value; with file, column, row and value.
    """
    expected = f"{file}: column '{name}' should be 0 or 1"
    remedy = "drop such rows or repair them before training"
    if column.null_count:
        row = int(np.argmax(pc.is_null(column).to_numpy()))
        raise ValueError(
            f"{expected}, received null in row {row} of its row group ({column.null_count} "
            f"nulls); {remedy}"
        )
    values_R = column.cast(pa.float64(), safe=False).to_numpy()
    wrong = np.flatnonzero((values_R != 0) & (values_R != 1))
    if len(wrong):
        raise ValueError(
            f"{expected}, received {values_R[wrong[0]]:g} in row {wrong[0]} of its row group; "
            f"{remedy}"
        )
    is_one_R: Bools = values_R == 1
    return is_one_R


def seconds(times: pa.Array | pa.ChunkedArray) -> Any:
    """Converts plain times, microseconds since 1970, to float64 seconds."""
    return pc.divide(times.cast(pa.int64()).cast(pa.float64(), safe=False), 1e6)


def _floats(values: pa.Array | pa.ChunkedArray) -> Any:
    """Converts numbers to float64, plain times to seconds."""
    return (
        seconds(values) if pa.types.is_timestamp(values.type) else cast(values, _FLOAT, safe=False)
    )


def finite_values(column: pa.ChunkedArray, *, file: str, name: str) -> pa.Array:
    """Converts numbers, one or a list of them a row, to float64 end to end; nulls stay.

    Raises:
        ValueError: NaN or infinity in the file; with file, column, row and value.
    """
    is_list = pa.types.is_nested(column.type)
    values = one_chunk(pc.list_flatten(column) if is_list else column)
    numbers = _floats(values)
    numbers_V = numbers.to_numpy(zero_copy_only=False)
    is_wrong_V = ~np.isfinite(numbers_V)
    if is_wrong_V.any() and numbers.null_count:
        is_wrong_V &= ~pc.is_null(numbers).to_numpy(zero_copy_only=False)
    if is_wrong_V.any():
        place = int(np.argmax(is_wrong_V))
        ends_R = np.cumsum(list_lengths(column)) if is_list else np.arange(1, len(column) + 1)
        row = int(np.searchsorted(ends_R, place, side="right"))
        raise ValueError(
            f"{file}: column '{name}' should be finite, received {numbers_V[place]} in row {row} "
            "of its row group; write null where a value is unknown"
        )
    return numbers


def finite_numbers(column: pa.ChunkedArray, *, file: str, name: str) -> npt.NDArray[np.float64]:
    """Converts a numeric column, [R]; a null becomes NaN.

    Raises:
        ValueError: NaN or infinity in the file; with file, column, row and value.
    """
    values_R = _floats(column).to_numpy()
    is_null_R = pc.is_null(column).to_numpy()
    wrong = np.flatnonzero(~is_null_R & ~np.isfinite(values_R))
    if len(wrong):
        raise ValueError(
            f"{file}: column '{name}' should be finite, received {values_R[wrong[0]]} in row "
            f"{wrong[0]} of its row group; "
            "write null where a value is unknown (nulls become the training mean)"
        )
    return np.where(is_null_R, np.nan, values_R)

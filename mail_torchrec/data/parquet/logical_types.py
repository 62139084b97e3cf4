"""Logical types of Arrow columns, whatever container stores the values.

Dictionaries, views, decimals, large and fixed-size lists and extension types are containers: they
hold the same values as plain columns, and are converted to those here. One value has one plain
form, so that it has one hash and one row of a vocabulary.
"""

from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.parquet.arrow import list_lengths, one_chunk, seconds
from mail_torchrec.data.parquet.times import TIME, plain_times


class LogicalType(StrEnum):
    """Type of the values of a column, or of a list column's elements."""

    INTEGER = "integer"
    """Integers of any width, and decimals (as ids they should be whole)."""
    STRING = "string"
    BOOLEAN = "boolean"
    NUMBER = "number"
    """Floating point."""
    TIME = "time"
    """Timestamps of any unit and zone, and dates: instants. As numbers, seconds from 1970 in UTC;
    a timestamp without a zone is in UTC."""
    NOTHING = "null"
    """No value at all: Arrow's null type, which has a say in no type."""


_ARROW = {
    LogicalType.INTEGER: pa.int64(),
    LogicalType.STRING: pa.large_string(),
    LogicalType.BOOLEAN: pa.bool_(),
    LogicalType.NUMBER: pa.float64(),
    LogicalType.TIME: TIME,
    LogicalType.NOTHING: pa.int64(),
}
_ACCEPTED = {
    LogicalType.INTEGER: {LogicalType.INTEGER},
    LogicalType.STRING: {LogicalType.STRING},
    LogicalType.BOOLEAN: {LogicalType.BOOLEAN},
    LogicalType.NUMBER: {
        LogicalType.INTEGER,
        LogicalType.BOOLEAN,
        LogicalType.NUMBER,
        LogicalType.TIME,
    },
    LogicalType.TIME: {LogicalType.TIME},
    LogicalType.NOTHING: set[LogicalType](),
}
_TESTS = {
    LogicalType.NOTHING: (pa.types.is_null,),
    LogicalType.BOOLEAN: (pa.types.is_boolean,),
    LogicalType.INTEGER: (pa.types.is_integer, pa.types.is_decimal),
    LogicalType.NUMBER: (pa.types.is_floating,),
    LogicalType.TIME: (pa.types.is_timestamp, pa.types.is_date),
    LogicalType.STRING: (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
    ),
}


def logical_type(kind: pa.DataType) -> LogicalType | None:
    """Returns the logical type of a column of one value a row; None: lists, structs ..."""
    if isinstance(kind, pa.BaseExtensionType):
        return logical_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return logical_type(kind.value_type)
    found = (name for name, tests in _TESTS.items() if any(test(kind) for test in tests))
    return next(found, None)


def element_type(kind: pa.DataType) -> pa.DataType | None:
    """Returns the type of a list column's elements; None for a column that holds no lists."""
    if isinstance(kind, pa.BaseExtensionType):
        return element_type(kind.storage_type)
    if pa.types.is_null(kind):  # lists that are all null
        return kind
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return kind.value_type if any(test(kind) for test in tests) else None


def plain_ids(column: pa.ChunkedArray, *, file: str, name: str) -> pa.Array:
    """Converts ids to int64 or large_string in one chunk; booleans become 0 and 1.

    Args:
        column: ids of any logical type and container.
        file: for messages.
        name: of the column, for messages.

    Raises:
        ValueError: values that are no ids, an integer beyond 64 bits; with file and column.
    """
    if column.type in (pa.int64(), pa.large_string()):
        return one_chunk(column)
    kind = logical_type(column.type)
    try:
        if kind in (None, LogicalType.NUMBER, LogicalType.TIME):
            raise ValueError(
                f"should hold ids (integers, strings or booleans), found {column.type}; cast it in "
                "the file"
            )
        values = plain_values(column, kind)
    except ValueError as error:
        raise ValueError(f"{file}: column '{name}' {error}") from error
    return values.cast(pa.int64()) if kind is LogicalType.BOOLEAN else values


def plain_values(column: pa.Array | pa.ChunkedArray, wanted: LogicalType) -> pa.Array:
    """Converts one value a row to the plain Arrow type of a logical type, in one chunk.

    Args:
        column: values of that logical type, or nulls of any type; for numbers also integers and
            booleans.
        wanted: INTEGER becomes int64, STRING large_string, BOOLEAN bool, NUMBER float64, TIME
            microseconds without a zone, which are in UTC, NOTHING int64 nulls.

    Raises:
        ValueError: values of another logical type, an integer beyond 64 bits, a decimal id that is
            not whole, bytes that are no UTF-8.
    """
    parts = [_plain(chunk, wanted) for chunk in _chunked(column).chunks]
    if len(parts) == 1:
        return parts[0]
    return pa.concat_arrays(parts) if parts else pa.array([], _ARROW[wanted])


def plain_lists(column: pa.Array | pa.ChunkedArray, wanted: LogicalType) -> pa.LargeListArray:
    """Converts lists to large_list of the elements' plain type, in one chunk; null becomes empty.

    Arguments and errors are those of :func:`plain_values`.
    """
    lists = _chunked(column)
    if isinstance(lists.type, pa.BaseExtensionType):
        lists = pa.chunked_array([chunk.storage for chunk in lists.chunks], lists.type.storage_type)
    if pa.types.is_null(lists.type):
        lists = lists.cast(pa.list_(pa.null()))
    # Arrow's own cast of list views loses elements (26.0), and a null of fixed size has elements.
    lengths_R = list_lengths(lists)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths_R)]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, plain_values(pc.list_flatten(lists), wanted))


def plain_vectors(column: pa.Array | pa.ChunkedArray) -> pa.LargeListArray:
    """Converts lists of numbers to large_list of float64, in one chunk; a null stays null.

    Raises:
        ValueError: elements that are no numbers.
    """
    lists = _chunked(column)
    if lists.type == pa.large_list(pa.float64()):
        return one_chunk(lists)
    plain = plain_lists(lists, LogicalType.NUMBER)
    is_null = pa.array(pc.is_null(lists).to_numpy())
    return pa.LargeListArray.from_arrays(plain.offsets, plain.values, mask=is_null)


def _chunked(column: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    return column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])


def _plain(values: pa.Array, wanted: LogicalType) -> pa.Array:
    """Converts one chunk."""
    target = _ARROW[wanted]
    if values.type == target:
        return values
    if isinstance(values.type, pa.BaseExtensionType):
        return _plain(values.storage, wanted)
    if values.null_count == len(values):
        return pa.nulls(len(values), target)
    if pa.types.is_dictionary(values.type):
        return _plain(values.dictionary, wanted).take(values.indices)
    if logical_type(values.type) not in _ACCEPTED[wanted]:
        raise ValueError(f"should be {wanted} values, found {values.type}")
    if logical_type(values.type) is LogicalType.TIME:
        times = plain_times(values)
        return seconds(times) if wanted is LogicalType.NUMBER else times
    if pa.types.is_decimal(values.type):  # narrow decimals have no cast to integers (26.0)
        values = values.cast(pa.decimal256(76, values.type.scale))
    try:
        return values.cast(target, safe=wanted is not LogicalType.NUMBER)
    except pa.ArrowException as error:
        raise ValueError(_unfit(values, wanted, error)) from error


def _unfit(values: pa.Array, wanted: LogicalType, error: pa.ArrowException) -> str:
    if wanted is LogicalType.STRING:
        return f"should be text in UTF-8: {error}; decode the bytes in the file"
    whole = "be whole and " if pa.types.is_decimal(values.type) else ""
    return f"should {whole}fit into signed 64-bit integers: {error}; store its ids as strings"

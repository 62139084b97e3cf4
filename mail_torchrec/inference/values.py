"""Conversion of raw request values to typed Arrow columns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from mail_torchrec.data.column_types import ColumnType
from mail_torchrec.data.parquet.arrow import cast
from mail_torchrec.data.parquet.logical_types import LogicalType, plain_lists, plain_values
from mail_torchrec.data.schema.schema import Column, Group, Kind, Schema
from mail_torchrec.inference.requests import candidate_columns, user_columns

ValueType = Literal["integer", "string", "boolean", "number", "flag"]
"""Type of a column's values, or of a list column's elements; flag is a boolean, or 0 or 1."""
_ARROW = {
    "integer": pa.int64(),
    "string": pa.large_string(),
    "boolean": pa.bool_(),
    "number": pa.float64(),
    "flag": pa.int8(),
}
_ACCEPTED: dict[ValueType, tuple[Callable[[pa.DataType], bool], ...]] = {
    "integer": (pa.types.is_integer, pa.types.is_floating),  # only whole floats can be cast
    "string": (pa.types.is_string, pa.types.is_large_string),
    "boolean": (pa.types.is_boolean,),
    "number": (pa.types.is_integer, pa.types.is_floating),
    "flag": (pa.types.is_boolean, pa.types.is_integer),
}


def value_types(types: Mapping[str, ColumnType], schema: Schema) -> dict[str, ValueType]:
    """Returns the value type of each raw column, by the types of the columns in the files."""
    names = [*user_columns(schema), *candidate_columns(schema), schema.group_key]
    return {
        schema.file_column(name): _value_type(types[name].kind, schema.columns[name])
        for name in names
    }


def _value_type(kind: LogicalType, column: Column) -> ValueType:
    if column.group is Group.NEW_USER:
        return "flag"
    if column.kind is Kind.NUMERIC:
        return "number"
    if kind is LogicalType.BOOLEAN:
        return "boolean"
    return "integer" if kind is LogicalType.INTEGER else "string"


def to_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Iterable[str],
    schema: Schema,
    types: Mapping[str, ValueType],
    row_name: str,
) -> pa.Table:
    """Builds an Arrow table of raw values, typed as the training files are.

    Args:
        rows: raw values by file column.
        columns: schema columns to take.
        schema: kinds of the columns.
        types: result of :func:`value_types` on the training files.
        row_name: name of a row in error messages, such as ``user``.

    Raises:
        ValueError: a column is missing, or a value is of another type.
    """
    arrays = {}
    for name in columns:
        column = schema.file_column(name)
        is_list = schema.columns[name].kind is Kind.LIST
        arrays[column] = pa.chunked_array(
            [_column(rows, column, types[column], is_list=is_list, row_name=row_name)]
        )
    return pa.table(arrays)


def _column(
    rows: Sequence[Mapping[str, Any]],
    column: str,
    kind: ValueType,
    *,
    is_list: bool,
    row_name: str,
) -> pa.Array:
    """Converts one column of raw rows.

    Arrow infers the type and the values are cast afterwards: told the type at once, Arrow would
    silently truncate 1.5 to 1.
    """
    try:
        return _cast_values(pa.array([row[column] for row in rows]), kind, is_list=is_list)
    except KeyError:
        absent = next(i for i, row in enumerate(rows) if column not in row)
        raise ValueError(
            f"{row_name} {absent} should have a value of column '{column}', or null, received none"
        ) from None
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        expected = f"a list of {kind} values" if is_list else f"one {kind}"
        raise ValueError(
            f"{row_name}: column '{column}' should hold {expected} or null: {error}"
        ) from error


def _cast_values(array: pa.Array, kind: ValueType, *, is_list: bool) -> pa.Array:
    """Casts a column of raw rows, whose type Arrow inferred, to its value type.

    Raises:
        ValueError: values of a type that cannot stand for it.
    """
    found = array.type
    if is_list and not pa.types.is_null(found):
        if not pa.types.is_list(found):
            raise ValueError(f"received {found} values")
        found = found.value_type
    if not (pa.types.is_null(found) or any(accepts(found) for accepts in _ACCEPTED[kind])):
        raise ValueError(f"received {found} values")
    target = pa.large_list(_ARROW[kind]) if is_list else _ARROW[kind]
    return cast(array, target, safe=kind != "number")


def file_values(column: pa.ChunkedArray, kind: ValueType, *, is_list: bool) -> pa.Array:
    """Converts a column of a file to its value type, whatever container stores the values.

    Raises:
        ValueError: values of another type than those of the training files.
    """
    wanted = LogicalType.NUMBER if kind in ("number", "flag") else LogicalType(kind)
    return (plain_lists if is_list else plain_values)(column, wanted)

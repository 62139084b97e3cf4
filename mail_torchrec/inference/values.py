"""Conversion of raw request values to typed Arrow columns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Literal

import pyarrow as pa

from mail_torchrec.data.column_types import ColumnType
from mail_torchrec.data.parquet.arrow import cast
from mail_torchrec.data.parquet.logical_types import LogicalType, plain_lists, plain_values
from mail_torchrec.data.parquet.times import TIME
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.schema.stored_columns import Form, StoredColumn, stored_columns
from mail_torchrec.inference.requests import candidate_columns, user_columns

ValueType = Literal["integer", "string", "boolean", "number", "flag", "time"]
"""Type of a column's values, or of a list column's elements; flag is a boolean, or 0 or 1, and time
a text in ISO 8601, such as 2024-05-31T18:00:00Z."""
_ARROW = {
    "integer": pa.int64(),
    "string": pa.large_string(),
    "boolean": pa.bool_(),
    "number": pa.float64(),
    "flag": pa.int8(),
    "time": TIME,
}
_ACCEPTED: dict[ValueType, tuple[Callable[[pa.DataType], bool], ...]] = {
    "integer": (pa.types.is_integer, pa.types.is_floating),  # only whole floats can be cast
    "string": (pa.types.is_string, pa.types.is_large_string),
    "boolean": (pa.types.is_boolean,),
    "number": (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    "flag": (pa.types.is_boolean, pa.types.is_integer),
}


def value_types(types: Mapping[str, ColumnType], schema: Schema) -> dict[str, ValueType]:
    """Returns the value type of each raw column, by the types of the columns in the files."""
    names = [*user_columns(schema), *candidate_columns(schema), schema.group_key]
    stored = [item for name in names for item in stored_columns(schema, name).items()]
    found = {
        column.column: _value_type(types[key].kind, column.form)
        for key, column in sorted(stored, key=lambda item: item[1].form)
    }
    return {column.column: found[column.column] for _, column in stored}


def _value_type(kind: LogicalType, form: Form) -> ValueType:
    if form is Form.FLAG:
        return "flag"
    if kind is LogicalType.TIME or (form is Form.TIME and kind is LogicalType.NOTHING):
        return "time"
    if form is Form.NUMBER:
        return "number"
    if kind is LogicalType.BOOLEAN:
        return "boolean"
    return "integer" if kind is LogicalType.INTEGER else "string"


def to_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Iterable[StoredColumn],
    types: Mapping[str, ValueType],
    row_name: str,
) -> pa.Table:
    """Builds an Arrow table of raw values, typed as the training files are.

    Args:
        rows: raw values by file column.
        columns: raw columns to take.
        types: result of :func:`value_types` on the training files.
        row_name: name of a row in error messages, such as ``user``.

    Raises:
        ValueError: a column is missing, or a value is of another type.
    """
    arrays = {}
    for column, _, is_list in columns:
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
        values = [row[column] for row in rows]
        if kind == "time":
            return _times(values, is_list=is_list)
        return _cast_values(pa.array(values), kind, is_list=is_list)
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


def _times(values: Sequence[Any], *, is_list: bool) -> pa.Array:
    """Converts times as ISO 8601 texts, in UTC where they name no zone, or as Python's objects."""
    if not is_list:
        return pa.array([_time(value) for value in values], TIME)
    lists = [None if value is None else [_time(one) for one in value] for value in values]
    return pa.array(lists, pa.large_list(TIME))


def _time(value: Any) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if value is not None and not isinstance(value, datetime):
        raise ValueError(f"received {value!r}, no text such as 2024-05-31T18:00:00Z")
    return value.astimezone(UTC).replace(tzinfo=None) if value and value.tzinfo else value


def json_value(value: Any) -> Any:
    """Converts a value of an Arrow table in Python to what a JSON request has: times as texts."""
    if isinstance(value, list):
        return [json_value(one) for one in value]
    return f"{value.isoformat()}Z" if isinstance(value, datetime) else value


def file_values(column: pa.ChunkedArray, kind: ValueType, *, is_list: bool) -> pa.Array:
    """Converts a column of a file to its value type, whatever container stores the values.

    Raises:
        ValueError: values of another type than those of the training files.
    """
    wanted = LogicalType.NUMBER if kind in ("number", "flag") else LogicalType(kind)
    return (plain_lists if is_list else plain_values)(column, wanted)

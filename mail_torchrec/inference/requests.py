"""What a ranker asks: one user and some candidates, as raw values; and the arrays that an exported model takes instead of rows.

Columns have the files' names. ``U`` users (one a request), ``N`` candidates of all of them, each
with the number of its user, so that what depends on the user alone is sent, looked up and computed
once. Nothing here needs torch: a client imports it as it is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mail_torchrec.data.cold_start import ALL
from mail_torchrec.data.encoders import Encoders, file_ids, misaligned
from mail_torchrec.data.parquet.arrow import Ints, JaggedArray, binary, cast, numbers
from mail_torchrec.data.schema.schema import Column, Group, Kind, Schema
from mail_torchrec.settings import Settings

USER_OF_CANDIDATE = "candidate.user"
"""The input that names each candidate's user. Columns have no dot in their names."""

ValueType = Literal["integer", "string", "boolean", "number", "flag"]
"""flag: a boolean, or 0 or 1."""
_ARROW = {
    "integer": pa.int64(),
    "string": pa.large_string(),
    "boolean": pa.bool_(),
    "number": pa.float64(),
    "flag": pa.int8(),
}
_WELCOME: dict[ValueType, tuple[Callable[[pa.DataType], bool], ...]] = {
    "integer": (pa.types.is_integer, pa.types.is_floating),  # of floats only whole ones can be cast
    "string": (pa.types.is_string, pa.types.is_large_string),
    "boolean": (pa.types.is_boolean,),
    "number": (pa.types.is_integer, pa.types.is_floating),
    "flag": (pa.types.is_boolean, pa.types.is_integer),
}
_USER_GROUPS = (Group.ATTRIBUTE, Group.BEHAVIOUR, Group.CONTEXT)


class Input(Settings):
    """One input of an exported model."""

    name: str
    """The schema's column, or a list column and ``.length``, or :data:`USER_OF_CANDIDATE`."""
    dtype: Literal["int64", "float32", "bool"]
    shape: tuple[int | str, ...]
    """Sizes; ``users``, ``candidates`` and ``COLUMN.width`` (the longest list of the request, at
    least 1) are free."""
    column: str | None
    """The raw column that it is made of."""
    low: int | None = None
    """The least value; None where any finite number is good."""
    high: int | None = None
    """The greatest value; None where any is good, or it depends on the request."""


@dataclass(frozen=True)
class Request:
    """One user and the candidates to be ranked for it, raw values by the files' column names; None where a value is missing."""

    user: Mapping[str, Any]
    """Attributes, histories (oldest first), context; the group key may be there."""
    candidates: Sequence[Mapping[str, Any]]
    """Item columns."""


def user_columns(schema: Schema) -> list[str]:
    """The schema columns whose values belong to the user or the moment, in the order of the inputs."""
    return [*schema.names(*_USER_GROUPS), *([schema.new_user] if schema.new_user else [])]


def candidate_columns(schema: Schema) -> list[str]:
    """The schema columns whose values belong to a candidate."""
    return schema.names(Group.ITEM)


def model_inputs(schema: Schema, num_rows: Mapping[str, int]) -> list[Input]:
    """The inputs of an exported model, in order.

    Args:
        schema: columns and tables.
        num_rows: table -> rows.
    """
    users = [
        part for name in user_columns(schema) for part in _inputs(name, "users", schema, num_rows)
    ]
    candidates = [
        part
        for name in candidate_columns(schema)
        for part in _inputs(name, "candidates", schema, num_rows)
    ]
    return [
        *users,
        *candidates,
        Input(name=USER_OF_CANDIDATE, dtype="int64", shape=("candidates",), column=None, low=0),
    ]


def _inputs(name: str, rows: str, schema: Schema, num_rows: Mapping[str, int]) -> list[Input]:
    column, source = schema.columns[name], schema.file_column(name)
    if column.group is Group.NEW_USER:
        return [Input(name=name, dtype="bool", shape=(rows,), column=source)]
    if column.kind is Kind.NUMERIC:
        return [Input(name=name, dtype="float32", shape=(rows,), column=source)]
    high = num_rows[schema.table_of(name)] - 1
    if column.kind is Kind.CATEGORICAL:
        return [Input(name=name, dtype="int64", shape=(rows,), column=source, low=0, high=high)]
    width = column.max_length if column.group is Group.BEHAVIOUR else f"{name}.width"
    ids = Input(name=name, dtype="int64", shape=(rows, width), column=source, low=0, high=high)
    if column.action_of is not None:  # as long as the items that it is on
        return [ids]
    return [
        ids,
        Input(
            name=f"{name}.length",
            dtype="int64",
            shape=(rows,),
            column=source,
            low=0,
            high=column.max_length,
        ),
    ]


def value_types(table: pa.Table, schema: Schema) -> dict[str, ValueType]:
    """What the values of each raw column are, those of a list's elements for lists."""
    names = [*user_columns(schema), *candidate_columns(schema), schema.group_key]
    return {
        schema.file_column(name): _value_type(
            table.schema.field(schema.file_column(name)).type, schema.columns[name]
        )
        for name in names
    }


def _value_type(kind: pa.DataType, column: Column) -> ValueType:
    if column.kind is Kind.LIST:
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if column.group is Group.NEW_USER:
        return "flag"
    if column.kind is Kind.NUMERIC:
        return "number"
    return (
        "boolean"
        if pa.types.is_boolean(kind)
        else "integer"
        if pa.types.is_integer(kind)
        else "string"
    )


def to_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Iterable[str],
    schema: Schema,
    types: Mapping[str, ValueType],
    what: str,
) -> pa.Table:
    """Raw values as the files hold them.

    Args:
        rows: column -> value.
        columns: the schema's columns to take.
        schema: their kinds.
        types: what :func:`value_types` found in the files.
        what: what a row is, for messages.

    Raises:
        ValueError: a column is missing, or a value is of another type.
    """
    arrays = {}
    for name in columns:
        column = schema.file_column(name)
        is_list = schema.columns[name].kind is Kind.LIST
        try:
            arrays[column] = pa.chunked_array(
                [_array([row[column] for row in rows], types[column], is_list=is_list)]
            )
        except KeyError:
            absent = next(i for i, row in enumerate(rows) if column not in row)
            raise ValueError(
                f"{what} {absent} should have a value of column '{column}', or null, received none"
            ) from None
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            expected = f"a list of {types[column]} values" if is_list else f"one {types[column]}"
            raise ValueError(
                f"{what}: column '{column}' should hold {expected} or null: {error}"
            ) from error
    return pa.table(arrays)


def _array(values: list[Any], kind: ValueType, *, is_list: bool) -> pa.Array:
    """Values as one array; what is found first decides nothing, as it would if Arrow were told the type: it cuts 1.5 to 1."""
    return _cast(pa.array(values), kind, is_list=is_list)


def _cast(
    array: pa.Array | pa.ChunkedArray, kind: ValueType, *, is_list: bool
) -> pa.Array | pa.ChunkedArray:
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    found = array.type
    if is_list and not pa.types.is_null(found):
        if not (pa.types.is_list(found) or pa.types.is_large_list(found)):
            raise ValueError(f"received {found} values")
        found = found.value_type
    if not pa.types.is_null(found) and not any(welcome(found) for welcome in _WELCOME[kind]):
        raise ValueError(f"received {found} values")
    return cast(
        array, pa.large_list(_ARROW[kind]) if is_list else _ARROW[kind], safe=kind != "number"
    )


@dataclass(frozen=True)
class RequestEncoder:
    """Raw requests -> the inputs of an exported model.

    Lists are cut to their newest ``max_length``, ids become table rows (unknown ones row 0, nulls
    row 1), numbers are transformed and
    standardised: what the reader does to rows of files.
    """

    schema: Schema
    encoders: Encoders
    types: Mapping[str, ValueType]

    def __call__(self, requests: Sequence[Request]) -> dict[str, npt.NDArray[Any]]:
        """The inputs of all requests together, candidates one request after another.

        Raises:
            ValueError: a value that cannot be scored; the message names column and value.
        """
        self._check_names(requests)
        users = self._users(
            to_table(
                [request.user for request in requests],
                user_columns(self.schema),
                self.schema,
                self.types,
                "user",
            )
        )
        rows = [candidate for request in requests for candidate in request.candidates]
        candidates = to_table(
            rows, candidate_columns(self.schema), self.schema, self.types, "candidate"
        )
        encoded = users | {
            name: part
            for column in candidate_columns(self.schema)
            for name, part in self._encode(column, candidates, "candidate")
        }
        counts = [len(request.candidates) for request in requests]
        return encoded | {USER_OF_CANDIDATE: np.repeat(np.arange(len(requests)), counts)}

    def users(self, table: pa.Table, what: str) -> dict[str, npt.NDArray[Any]]:
        """The users' inputs of a table with the files' columns, a user a row.

        Args:
            table: its context columns may be missing: they count as null.
            what: the table, for messages.

        Raises:
            ValueError: a column is missing, or a value cannot be scored.
        """
        columns = {}
        for name in user_columns(self.schema):
            column, source = self.schema.columns[name], self.schema.file_column(name)
            if column.group is Group.CONTEXT and source not in table.column_names:
                table = table.append_column(source, pa.nulls(len(table)))
            if source not in table.column_names:
                raise ValueError(
                    f"{what}: column '{source}' is missing; there are "
                    f"{', '.join(table.column_names)}"
                )
            try:
                columns[source] = _cast(
                    table[source], self.types[source], is_list=column.kind is Kind.LIST
                )
            except (pa.ArrowException, ValueError) as error:
                raise ValueError(
                    f"{what}: column '{source}' should hold {self.types[source]} values, as in "
                    f"training: {error}"
                ) from error
        return self._users(pa.table(columns))

    def _users(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        if (found := misaligned(table, self.schema)) is not None:
            raise ValueError(f"user {found.row}: {found}")
        return {
            name: part
            for column in user_columns(self.schema)
            for name, part in self._encode(column, table, "user")
        }

    def _encode(self, name: str, table: pa.Table, what: str) -> list[tuple[str, npt.NDArray[Any]]]:
        column, source = self.schema.columns[name], self.schema.file_column(name)
        if column.group is Group.NEW_USER:
            return [(name, binary(table[source], file=what, name=source))]
        if column.kind is Kind.NUMERIC:
            return [
                (
                    name,
                    self.encoders.scales[name].apply(
                        numbers(table[source], column.transform, file=what, name=source)
                    ),
                )
            ]
        ids, lengths = file_ids(table, self.schema, name, what, np.full(len(table), ALL))
        rows = JaggedArray(self.encoders.tables[self.schema.table_of(name)].encode(ids), lengths)
        if column.kind is Kind.CATEGORICAL:
            return [(name, rows.values)]
        width = (
            column.max_length
            if column.group is Group.BEHAVIOUR
            else max(int(lengths.max(initial=0)), 1)
        )
        padded = (name, _padded(rows, width))
        return [padded] if column.action_of is not None else [padded, (f"{name}.length", lengths)]

    def _check_names(self, requests: Sequence[Request]) -> None:
        of_user = {
            self.schema.file_column(name)
            for name in (*user_columns(self.schema), self.schema.group_key)
        }
        of_candidate = {self.schema.file_column(name) for name in candidate_columns(self.schema)}
        for request in requests:
            for what, row, known in [
                ("user", request.user, of_user),
                *(("candidate", row, of_candidate) for row in request.candidates),
            ]:
                if unknown := row.keys() - known:
                    raise ValueError(
                        f"{what}: column '{min(unknown)}' is none of this model's; it knows "
                        f"{', '.join(sorted(known))}"
                    )


def _padded(rows: JaggedArray, width: int) -> Ints:
    """[R, width], zeros behind each row's length."""
    padded = np.zeros((len(rows.lengths), width), dtype=np.int64)
    padded[np.arange(width) < rows.lengths[:, None]] = rows.values
    return padded

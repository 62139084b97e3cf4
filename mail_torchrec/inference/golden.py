"""Golden requests: of real rows, new and old users, nulls, unknown ids; and the same as rows of a file, for the trainer to score."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mail_torchrec.data.cold_start import ColdStartSettings, hidden_users, most_behaviours
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.parquet.arrow import Ints, plain_ids
from mail_torchrec.data.parquet.source import Source
from mail_torchrec.data.reading.chunk import ChunkEncoder
from mail_torchrec.data.schema.schema import Group, Kind, Schema
from mail_torchrec.inference.requests import (
    Request,
    ValueType,
    candidate_columns,
    to_table,
    user_columns,
    value_types,
)

_POOL = 4096  # rows to choose from
_OF_A_KIND = 3  # users of each kind
_NUM_CANDIDATES = (1, 2, 17, 5, 9)
_UNSEEN: dict[str, Any] = {"integer": -(2**62), "string": "\u2205 never seen in training"}


def sample_requests(
    source: Source,
    schema: Schema,
    encoders: Encoders,
    cold_start: ColdStartSettings,
    new_user_max_behaviours: int,
) -> tuple[list[Request], dict[str, ValueType]]:
    """Requests from a file's first rows, the same ones each time, and the types of their values.

    Users that the simulated cold start hides come without their behaviours. After new users, old
    ones and the one with the longest history come one of whom nothing is known and one whose every
    id is unseen.
    """
    table, file = _pool(source)
    types = value_types(table, schema)
    window = ChunkEncoder(schema, encoders, cold_start, new_user_max_behaviours)(table, file)
    key = schema.file_column(schema.group_key)
    most_R = most_behaviours(
        hidden_users(plain_ids(table[key], file=file, name=key), cold_start), cold_start
    )
    num_behaviours_R = np.sum([window.lists[name].lengths for name in schema.sequences], axis=0)
    chosen = [
        *_evenly(np.flatnonzero(window.is_cold_R)),
        *_evenly(np.flatnonzero(~window.is_cold_R)),
        int(np.argmax(num_behaviours_R)),
    ]
    users = [
        _user(table, row, int(most_R[row]), bool(window.is_cold_R[row]), schema) for row in chosen
    ]
    requests = []
    for i, user in enumerate(
        [*users, _without_values(users[-1], schema), _unseen(users[-1], schema, types)]
    ):
        rows = [
            (7 * i + 31 * j) % len(table) for j in range(_NUM_CANDIDATES[i % len(_NUM_CANDIDATES)])
        ]
        requests.append(Request(user, [_candidate(table, row, user, schema) for row in rows]))
    nothing, unseen = requests[-2:]
    requests[-2] = Request(
        nothing.user, [*nothing.candidates, _without_values(nothing.candidates[0], schema)]
    )
    requests[-1] = Request(
        unseen.user, [*unseen.candidates, _unseen(unseen.candidates[0], schema, types)]
    )
    return requests, types


def write_rows(
    requests: Sequence[Request], schema: Schema, types: Mapping[str, ValueType], path: Path
) -> None:
    """The requests' candidates as impression rows of a Parquet file, labels 0."""
    rows = [
        {**request.user, **candidate} for request in requests for candidate in request.candidates
    ]
    table = to_table(
        rows,
        [*user_columns(schema), *candidate_columns(schema), schema.group_key],
        schema,
        types,
        "row",
    )
    for name in schema.names(Group.LABEL, Group.CONVERSION):
        if schema.file_column(name) not in table.column_names:
            table = table.append_column(
                schema.file_column(name), pa.array(np.zeros(len(rows), np.int64))
            )
    pq.write_table(table, path)


def _pool(source: Source) -> tuple[pa.Table, str]:
    parts: list[pa.Table] = []
    for group in source.row_groups:
        parts.append(source.read(group))
        if sum(map(len, parts)) >= _POOL:
            break
    return pa.concat_tables(parts).slice(0, _POOL), source.file(source.row_groups[0])


def _evenly(rows: Ints) -> list[int]:
    """Some of the rows; none where there are none."""
    if not len(rows):
        return []
    places = np.linspace(0, len(rows) - 1, _OF_A_KIND).astype(np.int64)
    return list(dict.fromkeys(int(rows[place]) for place in places))


def _user(table: pa.Table, row: int, most: int, is_new: bool, schema: Schema) -> dict[str, Any]:
    [values] = table.slice(row, 1).to_pylist()
    user = {}
    for name in (*user_columns(schema), schema.group_key):
        column, source = schema.columns[name], schema.file_column(name)
        user[source] = values[source]
        if column.group is Group.BEHAVIOUR:
            user[source] = (
                values[source][max(len(values[source]) - most, 0) :] if values[source] else []
            )
        if column.group is Group.NEW_USER:
            user[source] = int(is_new)
    return user


def _candidate(
    table: pa.Table, row: int, user: Mapping[str, Any], schema: Schema
) -> dict[str, Any]:
    """A row's item; what a column that is the user's as well says is the user's."""
    [values] = table.slice(row, 1).to_pylist()
    columns = [schema.file_column(name) for name in candidate_columns(schema)]
    return {column: user.get(column, values[column]) for column in columns}


def _without_values(row: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    kept = {schema.file_column(name) for name in schema.names(Group.GROUP_KEY, Group.NEW_USER)}
    empty: dict[str, list[Any]] = {schema.file_column(name): [] for name in schema.lists}
    return {column: value if column in kept else empty.get(column) for column, value in row.items()}


def _unseen(
    row: Mapping[str, Any], schema: Schema, types: Mapping[str, ValueType]
) -> dict[str, Any]:
    changed = dict(row)
    for name in schema.id_columns:
        column = schema.file_column(name)
        if (
            column in row
            and types[column] in _UNSEEN
            and column != schema.file_column(schema.group_key)
        ):
            value = _UNSEEN[types[column]]
            changed[column] = (
                [value] * len(row[column] or [])
                if schema.columns[name].kind is Kind.LIST
                else value
            )
    return changed

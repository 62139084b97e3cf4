"""Sampling of golden requests from real rows, and their form as rows of a file.

The requests cover new and old users, missing values and unknown ids; as rows of a file, the
trainer scores them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.history import HistoryLimits, row_days
from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.reading.chunk import ChunkEncoder
from mail_torchrec.data.schema.schema import Group, Kind, Schema
from mail_torchrec.data.schema.stored_columns import Form, stored_columns
from mail_torchrec.data.source import Source
from mail_torchrec.inference.requests import Request, request_columns
from mail_torchrec.inference.values import ValueType, json_value, to_table, value_types

_POOL_ROWS = 4096  # rows of the file to choose from
_USERS_OF_KIND = 3
_NUM_CANDIDATES = (1, 2, 17, 5, 9)
_KEPT = Group.GROUP_KEY, Group.NEW_USER, Group.NEW_ITEM
_UNSEEN: dict[str, Any] = {"integer": -(2**62), "string": "\u2205 never seen in training"}


def sample_requests(
    source: Source,
    schema: Schema,
    encoders: Encoders,
    cold_start: ColdStartSettings,
    new_user_max_behaviours: int,
) -> tuple[list[Request], dict[str, ValueType]]:
    """Samples requests from a file's first rows; equal files give equal requests.

    Users that the simulated cold start hides come without their behaviours. The last requests are
    those of the user with the longest history, of a user without any value, and of a user whose
    every id is unseen.

    Args:
        source: Parquet file or folder.
        schema: columns and tables.
        encoders: fitted id encoders and scales.
        cold_start: simulated cold start of the run's test rows.
        new_user_max_behaviours: users with at most so many behaviours are new.

    Returns:
        The requests, and the value type of each raw column.
    """
    table, file = _pool(source)
    types = value_types(source.types, schema)
    chunk = ChunkEncoder(schema, encoders, cold_start, new_user_max_behaviours)(table, file)
    key = schema.file_column(schema.group_key)
    keys = plain_ids(table[key], file=file, name=key)
    limits = HistoryLimits.simulated(schema, keys, cold_start, row_days(table, schema, file))
    num_behaviours_R = np.sum([chunk.lists[name].lengths for name in schema.sequences], axis=0)
    rows = [
        *_evenly(np.flatnonzero(chunk.is_cold_R)),
        *_evenly(np.flatnonzero(~chunk.is_cold_R)),
        int(np.argmax(num_behaviours_R)),
    ]
    users = [request_user(table, row, limits, bool(chunk.is_cold_R[row])) for row in rows]
    return _requests(table, users, schema, types), types


def write_rows(
    requests: Sequence[Request], schema: Schema, types: Mapping[str, ValueType], path: Path
) -> None:
    """Writes the requests' candidates as impression rows of a Parquet file, with labels 0."""
    rows = [
        {**request.user, **candidate} for request in requests for candidate in request.candidates
    ]
    raw = request_columns(schema)
    key = stored_columns(schema, schema.group_key)[schema.group_key]
    columns = {column: one.stored for part in raw for column, one in part.items()}
    table = to_table(rows, ({key.column: key} | columns).values(), types, "row")
    zeros = pa.array(np.zeros(len(rows), np.int64))
    for name in schema.names(Group.LABEL, Group.CONVERSION, Group.TASK_LABEL):
        if schema.file_column(name) not in table.column_names:
            table = table.append_column(schema.file_column(name), zeros)
    pq.write_table(table, path)


def _pool(source: Source) -> tuple[pa.Table, str]:
    """Reads the rows to choose from, and the name of their first file."""
    parts: list[pa.Table] = []
    for group in source.row_groups:
        parts.append(source.read(group))
        if sum(map(len, parts)) >= _POOL_ROWS:
            break
    return pa.concat_tables(parts).slice(0, _POOL_ROWS), source.file(source.row_groups[0])


def _evenly(rows: Ints) -> list[int]:
    """Takes some rows at even distances; none of none."""
    if not len(rows):
        return []
    places = np.linspace(0, len(rows) - 1, _USERS_OF_KIND).astype(np.int64)
    return list(dict.fromkeys(int(rows[place]) for place in places))


def _requests(
    table: pa.Table,
    users: list[dict[str, Any]],
    schema: Schema,
    types: Mapping[str, ValueType],
) -> list[Request]:
    """Gives each user candidates; adds a user without values and one of unseen ids."""
    users = [*users, _without_values(users[-1], schema), _unseen(users[-1], schema, types)]
    requests = [
        Request(
            user, [request_candidate(table, row, user, schema) for row in _candidate_rows(i, table)]
        )
        for i, user in enumerate(users)
    ]
    missing, unseen = requests[-2:]
    missing_candidate = _without_values(missing.candidates[0], schema)
    unseen_candidate = _unseen(unseen.candidates[0], schema, types)
    return [
        *requests[:-2],
        Request(missing.user, [*missing.candidates, missing_candidate]),
        Request(unseen.user, [*unseen.candidates, unseen_candidate]),
    ]


def _candidate_rows(request: int, table: pa.Table) -> list[int]:
    """Chooses the rows whose items are a request's candidates."""
    num_candidates = _NUM_CANDIDATES[request % len(_NUM_CANDIDATES)]
    return [(7 * request + 31 * candidate) % len(table) for candidate in range(num_candidates)]


def request_user(table: pa.Table, row: int, limits: HistoryLimits, is_new: bool) -> dict[str, Any]:
    """Takes a row's user, with the behaviours that the simulated cold start shows.

    Args:
        table: rows with the files' columns.
        row: number of the row.
        limits: on the rows' behaviours.
        is_new: value of the column that says which users are new, where there is one.
    """
    schema = limits.schema
    [values] = table.slice(row, 1).to_pylist()
    user = {}
    for source, raw in request_columns(schema).user.items():
        groups = {schema.columns[name].group for name in raw.readers}
        user[source] = json_value(values[source])
        if Group.BEHAVIOUR in groups and raw.stored.is_list:
            user[source] = limits.shown_behaviours(user[source] or [], row)
        if Group.NEW_USER in groups:
            user[source] = int(is_new)
    user.setdefault(key := schema.file_column(schema.group_key), values[key])
    return user


def request_candidate(
    table: pa.Table, row: int, user: Mapping[str, Any], schema: Schema
) -> dict[str, Any]:
    """Takes a row's item; a column that the user has as well keeps the user's value.

    Args:
        table: rows with the files' columns.
        row: number of the row.
        user: the request's user.
        schema: columns and tables.
    """
    [values] = table.slice(row, 1).to_pylist()
    columns = request_columns(schema).candidate
    return {column: user.get(column, json_value(values[column])) for column in columns}


def _without_values(row: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Replaces all values but the group key and the new-user flag by null or an empty list."""
    kept = {schema.file_column(name) for name in schema.names(*_KEPT)}
    raw = request_columns(schema)
    empty: dict[str, list[Any]] = {
        source: []
        for source, column in (raw.user | raw.candidate).items()
        if any(schema.columns[name].kind is Kind.LIST for name in column.readers)
        and column.stored.is_list
    }
    return {column: value if column in kept else empty.get(column) for column, value in row.items()}


def _unseen(
    row: Mapping[str, Any], schema: Schema, types: Mapping[str, ValueType]
) -> dict[str, Any]:
    """Replaces every id but the group key by one that training never saw."""
    changed, key = dict(row), schema.file_column(schema.group_key)
    raw = request_columns(schema)
    for column, (stored, _) in (raw.user | raw.candidate).items():
        is_id = stored.form is Form.ID and types[column] in _UNSEEN
        if column == key or column not in row or not is_id:
            continue
        value = _UNSEEN[types[column]]
        changed[column] = [value] * len(row[column] or []) if stored.is_list else value
    return changed

"""File of a managed table: who owns which row.

Parquet with the columns ``value`` (null for a row without owner), ``row``, ``count``, ``last_seen``
(a date) and ``generation``, in the order of rows. Rows that never had an owner are left out.
"""

import os
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from mail_torchrec.data.ids.admission import NEVER, OwnedRows
from mail_torchrec.data.parquet.arrow import one_chunk
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.run_files import atomic_file
from mail_torchrec.utils.safe_paths import open_regular

_VALUE_TYPES = (pa.int64(), pa.large_string(), pa.bool_(), pa.null())
_KINDS = {
    "row": pa.int64(),
    "count": pa.float64(),
    "last_seen": pa.date32(),
    "generation": pa.int64(),
}
# Rows differ, so that compression takes less than a twentieth of their bytes.
_MAX_ROWS_A_BYTE = 8
_UPDATE = b"mail_torchrec.update"
_EPOCH = date(1970, 1, 1)


class LastUpdate(Settings):
    """Counts of ids that came to a managed table, left it or found no row, at its last update."""

    day: date | None = None
    """Day of the training data, the newest of the runs that were continued; null where none is
    known."""
    admitted: int = Field(ge=0)
    """Ids that got a row."""
    evicted: int = Field(ge=0)
    """Ids that lost their row to another one."""
    expired: int = Field(ge=0)
    """Ids that lost their row because they were not seen for too long."""
    rare: int = Field(ge=0)
    """Ids of the training data that occur too seldom for a row."""
    refused: int = Field(ge=0)
    """Ids of the training data that occur often enough and found no row."""


def day_number(day: date) -> int:
    """Returns the number of days since 1970."""
    return (day - _EPOCH).days


def write_owned(path: Path, owned: OwnedRows, first_row: int, update: LastUpdate) -> None:
    """Writes the file.

    Args:
        path: of the file.
        owned: rows and owners.
        first_row: table row that ``owned`` counts from.
        update: stands in the file's metadata.
    """
    is_listed_R = owned.generations_R > 0
    is_listed_R[owned.rows_V] = True
    listed = np.flatnonzero(is_listed_R)
    places = np.full(len(listed), -1)
    places[np.searchsorted(listed, owned.rows_V)] = np.arange(len(owned.rows_V))
    of_owner = pa.array(places, mask=places < 0)
    is_dated_V = owned.days_V != NEVER
    days = pa.array(np.where(is_dated_V, owned.days_V, 0).astype(np.int32), mask=~is_dated_V)
    columns = {
        "value": owned.values.take(of_owner),
        "row": listed + first_row,
        "count": pc.fill_null(pa.array(owned.counts_V, pa.float64()).take(of_owner), 0.0),
        "last_seen": days.cast(pa.date32()).take(of_owner),
        "generation": owned.generations_R[listed],
    }
    table = pa.table(columns).replace_schema_metadata({_UPDATE: update.model_dump_json().encode()})
    with atomic_file(path) as file:
        pq.write_table(table, file)


def read_owned(path: Path, first_row: int, num_rows: int) -> tuple[OwnedRows, LastUpdate]:
    """Reads the file, a regular one or a link to one.

    Args:
        path: of the file.
        first_row: first table row that an id can own.
        num_rows: rows of the table.

    Raises:
        ValueError: it is damaged.
    """
    try:
        columns, metadata = _read_columns(path, num_rows - first_row)
        update = LastUpdate.model_validate_json(metadata.get(_UPDATE, b""))
        return _owned_rows(columns, first_row, num_rows), update
    except ValidationError as error:
        message = first_fault(error)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        message = " ".join(str(error).split())
    raise ValueError(f"'{path}' should be the ids of a managed table, it is damaged: {message}")


def _read_columns(path: Path, most: int) -> tuple[dict[str, pa.Array], dict[bytes, bytes]]:
    """Reads the columns, if they are those of such a file and no more than the table's rows."""
    with open_regular(path, follow_link=True) as file:
        num_bytes = file.seek(0, os.SEEK_END)
        stored = pq.ParquetFile(file)
        kinds = {field.name: field.type for field in stored.schema_arrow}
        is_one = any(kinds == {"value": kind, **_KINDS} for kind in _VALUE_TYPES)
        found = stored.metadata.num_rows
        if not is_one or found > min(most, _MAX_ROWS_A_BYTE * num_bytes):
            raise ValueError(
                f"{found:,} rows of {kinds} in {num_bytes:,} bytes, for a table that has {most:,}"
            )
        # One after another, so that no two copies of all of them are in memory.
        columns = {name: one_chunk(stored.read([name])[name]) for name in kinds}
        return columns, stored.schema_arrow.metadata or {}


def _owned_rows(columns: dict[str, pa.Array], first_row: int, num_rows: int) -> OwnedRows:
    values, days = columns.pop("value"), columns.pop("last_seen").cast(pa.int32())
    if any(column.null_count for column in columns.values()):
        raise ValueError("it has nulls")
    rows, counts, generations = (column.to_numpy() for column in columns.values())
    if (np.diff(rows) <= 0).any() or (rows < first_row).any() or (rows >= num_rows).any():
        raise ValueError(f"its rows do not rise from {first_row} to {num_rows - 1}")
    if not (np.isfinite(counts) & (counts >= 0)).all() or (generations < 0).any():
        raise ValueError("a count or generation is negative or no number")
    if _has_twice(values.drop_null()):
        raise ValueError("a value stands twice")
    is_owned = values.is_valid().to_numpy(zero_copy_only=False)
    generations_R = np.zeros(num_rows - first_row, np.int64)
    generations_R[rows - first_row] = generations
    days_of_rows = pc.fill_null(days.cast(pa.int64()), NEVER).to_numpy()
    return OwnedRows(
        values.drop_null(),
        rows[is_owned] - first_row,
        counts[is_owned],
        days_of_rows[is_owned],
        generations_R,
    )


def _has_twice(values: pa.Array) -> bool:
    """Tells whether a value occurs twice; integers are sorted, which needs less memory."""
    if pa.types.is_integer(values.type):
        ordered = np.sort(values.to_numpy())
        return bool((ordered[1:] == ordered[:-1]).any())
    return len(values.unique()) != len(values)

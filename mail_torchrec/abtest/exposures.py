"""Exposure log of an A/B test, summed by user and version.

Files are read a batch at a time; one line for each user, version and (where the log says it)
new-user and new-item flag stays in memory. ``L`` lines, ``R`` rows of a batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mail_torchrec.data.parquet.arrow import Bools, Ints, binary, one_chunk
from mail_torchrec.data.parquet.files import parquet_files
from mail_torchrec.data.parquet.logical_types import LogicalType, plain_ids, plain_values

_BATCH = 1_000_000  # rows read at a time
_KEYS = ["user", "version", "is_new", "is_new_item"]
_SUMS = ["impressions", "clicks", "conversions"]


@dataclass(frozen=True)
class LogColumns:
    """Names of the log's columns."""

    user: str = "user"
    version: str = "model_version"
    """As the servers' responses call it."""
    click: str = "click"
    """0 or 1; a count where ``impressions`` is given."""
    conversion: str | None = None
    """Likewise; a conversion without a click counts as none, as in training."""
    is_new: str | None = None
    """1 where the user was new."""
    impressions: str | None = None
    """Number of impressions that a row stands for; None where each row is one."""
    is_new_item: str | None = None
    """1 where the item was new."""
    day: str | None = None
    """Day of the impression, for a read-out by days since a user's first one."""
    score: str | None = None
    """Predicted probability of the click, for AUC and calibration by these days."""

    @property
    def names(self) -> list[str]:
        """Columns that are given, each once."""
        columns = (
            self.user,
            self.version,
            self.click,
            self.conversion,
            self.is_new,
            self.is_new_item,
            self.impressions,
        )
        return list(dict.fromkeys(name for name in columns if name is not None))


@dataclass(frozen=True)
class Exposures:
    """Impressions, clicks and conversions of each line: a user, a version, flags of new ones."""

    users: pa.Array
    """int64 or large_string [L]."""
    versions: pa.Array
    """large_string [L]."""
    is_new_L: Bools | None
    """None where the log has no such column."""
    impressions_L: Ints
    clicks_L: Ints
    conversions_L: Ints | None
    """Conversions after a click; None where the log has no such column."""
    num_unclicked: int
    """Conversions without a click, in the whole log."""
    is_new_item_L: Bools | None = None
    """None where the log has no such column."""

    @property
    def user_indices_L(self) -> Ints:
        """Index 0 .. U - 1 of each line's user."""
        indices: Ints = self.users.dictionary_encode().indices.to_numpy().astype(np.int64)
        return indices


def read_exposures(paths: Iterable[str], columns: LogColumns) -> Exposures:
    """Reads and sums a log.

    Args:
        paths: Parquet files, folders or URIs.
        columns: names of the columns.

    Raises:
        ValueError: no log, a missing column, a null, a value that is no count; the message names
            file and column.
    """
    sums, num_unclicked = _read_sums(paths, columns)
    return Exposures(
        users=one_chunk(sums["user"]),
        versions=one_chunk(sums["version"]),
        is_new_L=_ints(sums["is_new"]) == 1 if columns.is_new else None,
        impressions_L=_ints(sums["impressions"]),
        clicks_L=_ints(sums["clicks"]),
        conversions_L=_ints(sums["conversions"]) if columns.conversion else None,
        num_unclicked=num_unclicked,
        is_new_item_L=_ints(sums["is_new_item"]) == 1 if columns.is_new_item else None,
    )


def _read_sums(paths: Iterable[str], columns: LogColumns) -> tuple[pa.Table, int]:
    """Sums all files; also counts conversions without a click."""
    parts: list[pa.Table] = []
    num_unclicked = num_waiting = 0
    for part, unclicked in _batch_sums(paths, columns):
        num_unclicked += unclicked
        num_waiting += len(part)
        parts.append(part)
        # Parts wait until they outnumber the sums, so that each line is added a few times only.
        if num_waiting > max(_BATCH, len(parts[0])):
            parts, num_waiting = [_add_up(parts)], 0
    if not parts:
        raise ValueError("the log should hold impressions, received no rows")
    # Sorted, so that equal logs give equal metrics to the last digit.
    return _add_up(parts).sort_by([(name, "ascending") for name in _KEYS]), num_unclicked


def log_batches(paths: Iterable[str], columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yields the rows of a log batch by batch, each with the name of its file.

    Args:
        paths: Parquet files, folders or URIs.
        columns: names of the columns to read.

    Raises:
        ValueError: no log, or a missing column.
    """
    hint = "give as LOG Parquet files or folders of the exposure and click log"
    for log_file in (log_file for path in paths for log_file in parquet_files(path, hint)):
        if not log_file.num_rows:
            continue
        remedy = "name the log's columns (--user, --version, --click, ...)"
        log_file.check_columns(list(columns), remedy)
        for batch in log_file.batches(list(columns), _BATCH):
            yield log_file.path, batch


def _batch_sums(paths: Iterable[str], columns: LogColumns) -> Iterator[tuple[pa.Table, int]]:
    """Yields the sums of each batch, and its number of conversions without a click."""
    first: tuple[str, pa.DataType] | None = None
    for file, batch in log_batches(paths, columns.names):
        part, num_unclicked = _count_batch(batch, columns, file)
        found = part["user"].type
        first_file, expected = first = first or (file, found)
        if found != expected:
            raise ValueError(
                f"{file}: column '{columns.user}' should be {expected} as in {first_file}, "
                f"found {found}; a number and its text are different users: cast one of them"
            )
        yield _add_up([part]), num_unclicked


def _count_batch(batch: pa.Table, columns: LogColumns, file: str) -> tuple[pa.Table, int]:
    """Converts a batch to our own columns; also counts its conversions without a click."""
    zeros_R = np.zeros(len(batch), np.int64)
    impressions_R, clicks_R = _count_clicks(batch, columns, file)
    conversions_R = zeros_R
    if columns.conversion is not None:
        conversions_R = _events(batch, columns.conversion, columns, file)
    flags = {
        name: zeros_R if column is None else read_flags(batch, column, file)
        for name, column in (("is_new", columns.is_new), ("is_new_item", columns.is_new_item))
    }
    counted_R = np.minimum(conversions_R, clicks_R)
    table = pa.table(
        {
            "user": read_ids(batch, columns.user, file),
            "version": read_ids(batch, columns.version, file).cast(pa.large_string()),
            **{name: flag_R.astype(np.int8) for name, flag_R in flags.items()},
            "impressions": impressions_R,
            "clicks": clicks_R,
            "conversions": counted_R,
        }
    )
    return table, int((conversions_R - counted_R).sum())


def _count_clicks(batch: pa.Table, columns: LogColumns, file: str) -> tuple[Ints, Ints]:
    """Counts impressions and clicks of each row, [R] each."""
    clicks_R = _events(batch, columns.click, columns, file)
    if columns.impressions is None:
        return np.ones(len(batch), np.int64), clicks_R
    impressions_R = _counts(batch, columns.impressions, file)
    if len(wrong := np.flatnonzero(clicks_R > impressions_R)):
        row = wrong[0]
        raise ValueError(
            f"{file}: column '{columns.click}' should not exceed '{columns.impressions}', "
            f"received {clicks_R[row]} clicks on {impressions_R[row]} impressions"
        )
    return impressions_R, clicks_R


def _events(batch: pa.Table, name: str, columns: LogColumns, file: str) -> Ints:
    """Reads clicks or conversions [R]: 0 or 1, or counts in a log of sums."""
    if columns.impressions is not None:
        return _counts(batch, name, file)
    return read_flags(batch, name, file).astype(np.int64)


def read_flags(batch: pa.Table, name: str, file: str) -> Bools:
    """Reads a column of 0 and 1, [R].

    Args:
        batch: rows of a log.
        name: of the column.
        file: for messages.

    Raises:
        ValueError: other values.
    """
    values = _plain(batch, name, LogicalType.NUMBER, file)
    return binary(pa.chunked_array([values]), file=file, name=name)


def read_ids(batch: pa.Table, name: str, file: str) -> pa.Array:
    """Reads a column of ids without nulls, int64 or large_string [R].

    Args:
        batch: rows of a log.
        name: of the column.
        file: for messages.

    Raises:
        ValueError: nulls, or values that are no ids.
    """
    ids = plain_ids(batch[name], file=file, name=name)
    if ids.null_count:
        raise ValueError(
            f"{file}: column '{name}' should say it of every row, received {ids.null_count} "
            "nulls; leave such rows out"
        )
    return ids


def _counts(batch: pa.Table, name: str, file: str) -> Ints:
    counts = _plain(batch, name, LogicalType.INTEGER, file)
    if counts.null_count or (len(counts) and pc.min(counts).as_py() < 0):
        raise ValueError(
            f"{file}: column '{name}' should hold counts, integers from 0 on without nulls, found "
            f"{pc.min(counts)} and {counts.null_count} nulls"
        )
    return _ints(counts)


def _plain(batch: pa.Table, name: str, kind: LogicalType, file: str) -> pa.Array:
    try:
        return plain_values(batch[name], kind)
    except ValueError as error:
        raise ValueError(f"{file}: column '{name}' {error}") from error


def _add_up(parts: list[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(parts).group_by(_KEYS).aggregate([(name, "sum") for name in _SUMS])
    return grouped.rename_columns({f"{name}_sum": name for name in _SUMS})


def _ints(column: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.to_numpy(), np.int64)

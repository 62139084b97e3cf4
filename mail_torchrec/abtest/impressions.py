"""Impressions of an exposure log with their days, for a read-out by days since a user's first.

One line an impression stays in memory, 26 bytes of it. ``R`` impressions, ``U`` users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mail_torchrec.abtest.arms import ARMS
from mail_torchrec.abtest.exposures import LogColumns, log_batches, read_flags, read_ids
from mail_torchrec.data.parquet.arrow import Bools
from mail_torchrec.data.parquet.logical_types import LogicalType, logical_type, plain_values

_MOST_DAYS = 1_000_000  # 2,700 years; larger numbers are dates such as 20240501, or no days
NO_ARM = -1
"""Arm of impressions of other versions, and of users who saw both arms."""


@dataclass(frozen=True)
class Impressions:
    """Impressions of a log."""

    users_R: NDArray[np.int32]
    """Index 0 .. U - 1 of the user."""
    arms_R: NDArray[np.int8]
    """Index in :data:`ARMS`, or :data:`NO_ARM`."""
    days_R: NDArray[np.int32]
    """Days since some day, the same for all."""
    is_new_R: Bools
    """Whether the user was new at this impression."""
    clicks_R: NDArray[np.int8]
    scores_R: NDArray[np.float64] | None = None
    """Predicted probability of the click; None where the log has no such column."""

    @property
    def num_users(self) -> int:
        """Number of users, U."""
        return int(self.users_R.max()) + 1


def read_impressions(
    paths: Sequence[str], columns: LogColumns, versions: Mapping[str, Sequence[str]]
) -> Impressions:
    """Reads a log's impressions.

    Args:
        paths: Parquet files, folders or URIs.
        columns: names of the columns, ``day`` and ``is_new`` among them.
        versions: versions of each arm.

    Raises:
        ValueError: a row that is no single impression, or a day or score that is none; the message
            names file and column.
    """
    _check(columns)
    names = list(dict.fromkeys([*columns.names, *filter(None, (columns.day, columns.score))]))
    arm_of = {name: arm for arm, key in enumerate(ARMS) for name in versions[key]}
    users: list[pa.Array] = []
    parts: list[list[NDArray[Any]]] = []
    for file, batch in log_batches(paths, names):
        users.append(read_ids(batch, columns.user, file).dictionary_encode())
        parts.append(_arrays(batch, columns, arm_of, file))
    users_R = _indices(users)
    arms_R, *others = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Impressions(users_R, _without_both(users_R, arms_R), *others)


def _indices(users: list[pa.Array]) -> NDArray[np.int32]:
    """Numbers the users of all batches, each of them a dictionary array."""
    encoded = pa.chunked_array(users).unify_dictionaries()
    return np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks]).astype(np.int32)


def _check(columns: LogColumns) -> None:
    if columns.is_new is None:
        raise ValueError(
            "--day follows the users who were new at first; name by --new-user the column that "
            "says who was"
        )
    if columns.impressions is not None:
        raise ValueError(
            "--day needs a row an impression, and --impressions says that rows are sums; leave one "
            "of them out"
        )


def _arrays(
    batch: pa.Table, columns: LogColumns, arm_of: Mapping[str, int], file: str
) -> list[NDArray[Any]]:
    """Converts a batch to arms, days, flags, clicks and scores, [R] each."""
    assert columns.day is not None and columns.is_new is not None
    versions = read_ids(batch, columns.version, file).cast(pa.large_string()).dictionary_encode()
    arms = [arm_of.get(name, NO_ARM) for name in versions.dictionary.to_pylist()]
    found: list[NDArray[Any]] = [
        np.array(arms, np.int8)[versions.indices.to_numpy()],
        _days(batch, columns.day, file),
        read_flags(batch, columns.is_new, file),
        read_flags(batch, columns.click, file).astype(np.int8),
    ]
    if columns.score is not None:
        found.append(_scores(batch, columns.score, file))
    return found


def _days(batch: pa.Table, name: str, file: str) -> NDArray[np.int32]:
    """Reads days: counted, such as 19844 or 20240501, dates, times (in UTC), or dates as text."""
    try:
        days = _day_numbers(batch[name])
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"{file}: column '{name}' should hold days: whole numbers counted day by day or as "
            f"20240501, dates, times, or dates as text (2024-05-01): {error}"
        ) from error
    if days.null_count:
        raise ValueError(
            f"{file}: column '{name}' should say the day of every row, received {days.null_count} "
            "nulls; leave such rows out"
        )
    result: NDArray[np.int32] = days.to_numpy()
    return result


def _day_numbers(column: pa.ChunkedArray) -> pa.Array:
    kind = logical_type(column.type)
    if kind is LogicalType.INTEGER:
        return _counted_days(plain_values(column, kind))
    if kind not in (LogicalType.TIME, LogicalType.STRING):
        raise ValueError(f"found {column.type}")
    times = plain_values(column, kind).cast(pa.timestamp("us"))
    return pc.floor_temporal(times, unit="day").cast(pa.date32()).cast(pa.int32())


def _counted_days(days: pa.Array) -> pa.Array:
    """Returns days that are counted as they are, and those that are written 20240501 as dates.

    Differences of the latter would not be days from one month to the next.
    """
    bounds = pc.min_max(days).as_py()
    if bounds["max"] is None or max(-bounds["min"], bounds["max"]) <= _MOST_DAYS:
        return days.cast(pa.int32())
    dates = pc.strptime(days.cast(pa.string()), format="%Y%m%d", unit="s")
    return dates.cast(pa.date32()).cast(pa.int32())


def _scores(batch: pa.Table, name: str, file: str) -> NDArray[np.float64]:
    try:
        values = plain_values(batch[name], LogicalType.NUMBER)
    except ValueError as error:
        raise ValueError(f"{file}: column '{name}' {error}") from error
    scores_R: NDArray[np.float64] = values.to_numpy(zero_copy_only=False)
    if not ((scores_R >= 0) & (scores_R <= 1)).all():
        raise ValueError(
            f"{file}: column '{name}' should hold probabilities, 0 to 1 without nulls; name the "
            "column of the response's 'pctr'"
        )
    return scores_R


def _without_both(users_R: NDArray[np.int32], arms_R: NDArray[np.int8]) -> NDArray[np.int8]:
    """Takes the impressions of users who saw both arms out of either."""
    num_users = int(users_R.max()) + 1
    saw_both_U = np.ones(num_users, np.bool_)
    for arm in range(len(ARMS)):
        saw_both_U &= np.bincount(users_R[arms_R == arm], minlength=num_users) > 0
    return np.where(saw_both_U[users_R], NO_ARM, arms_R).astype(np.int8)

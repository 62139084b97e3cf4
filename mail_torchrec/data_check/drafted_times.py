"""Drafted columns that are derived from times: hour and weekday of the row, ages of items.

Shapes: ``R`` rows of the sample.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from mail_torchrec.data.parquet.arrow import one_chunk
from mail_torchrec.data_check.column_profile import ColumnProfile, determination
from mail_torchrec.data_check.drafted_columns import DraftedColumn, DraftedSchema, in_order
from mail_torchrec.data_check.roles import Profiles, Roles

_ROWS = 50_000  # rows that say whose a time is
_UNITS = {"second": 1, "millisecond": 1_000, "microsecond": 1_000_000}
_ROW_WORDS = {"time", "timestamp", "ts", "datetime", "at"}


def with_times(schema: DraftedSchema, profiles: Profiles, roles: Roles) -> DraftedSchema:
    """Adds the columns that are derived from the time of a row.

    Args:
        schema: what was drafted so far.
        profiles: of all columns.
        roles: of columns that have one of their own.
    """
    times = [column for column in profiles.values() if _is_moment(column)]
    users, items = (
        None if name is None else profiles[name].codes(_ROWS) for name in (roles.user, roles.item)
    )
    of_row, of_user, of_item = [], [], []
    for column in times:
        codes_R = column.codes(_ROWS)
        if items is not None and determination(codes_R, items) >= 0.8:
            of_item.append(column)
        elif users is not None and determination(codes_R, users) >= 0.8:
            of_user.append(column)
        else:
            of_row.append(column)
    if not of_row:
        return schema
    now = min(of_row, key=lambda column: not column.words & _ROW_WORDS)
    lines = list(_parts(now, profiles))
    for group, columns in (("attribute", of_user), ("item", of_item)):
        lines.extend(_age(column, now, group) for column in columns)
    used = {
        line.settings["age_of"] for line in lines if line.settings and "age_of" in line.settings
    }
    used |= {now.name} if lines else set()
    kept = [line for line in schema.columns if line.settings is not None or line.name not in used]
    return replace(schema, columns=in_order([*kept, *lines]))


def _is_moment(column: ColumnProfile) -> bool:
    """Returns whether a column holds times of day: timestamps, or integers in seconds and less."""
    is_stamp = pa.types.is_timestamp(column.stored)
    return not column.is_list and (is_stamp or column.time_unit in _UNITS)


def _parts(now: ColumnProfile, profiles: Profiles) -> Iterator[DraftedColumn]:
    """Drafts the hour and the weekday, where no column has them."""
    words = {word for column in profiles.values() for word in column.words}
    low, high = (_seconds(now)[index] for index in (0, -1))
    parts = ["hour"] if "hour" not in words else []
    if not words & {"weekday", "dow"} and high - low >= 8 * 86_400:
        parts.append("weekday")
    for part in parts:
        settings = {"group": "context", "column": now.name, "part": part} | _unit(now)
        yield DraftedColumn(f"{now.name}_{part}", settings, f"{part} of {now.name} in UTC; zone?")


def _age(column: ColumnProfile, now: ColumnProfile, group: str) -> DraftedColumn:
    """Drafts the age of an item's or a user's time at the time of the row."""
    settings: dict[str, Any] = {"group": group, "kind": "numeric", "column": now.name}
    settings |= {"age_of": column.name, "age_unit": "day"} | _unit(now)
    whose = {"attribute": "user", "item": "item"}[group]
    ages = _numbers(now) - _numbers(column)
    if (ages[~np.isnan(ages)] >= 0).all():
        settings["transform"] = "log"
    reason = f"days since {column.name}, a time that follows from the {whose}"
    return DraftedColumn(f"{column.name}_age", settings, reason)


def _unit(column: ColumnProfile) -> dict[str, str]:
    return {} if column.time_unit is None else {"time_unit": column.time_unit}


def _numbers(column: ColumnProfile) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Returns times in seconds, [R]; null is NaN."""
    values = one_chunk(column.values)
    scale = _UNITS[column.time_unit or "microsecond"]
    numbers = values.cast(pa.int64()).cast(pa.float64(), safe=False)
    seconds_R: np.ndarray[tuple[int], np.dtype[np.float64]]
    seconds_R = numbers.to_numpy(zero_copy_only=False) / scale
    return seconds_R


def _seconds(column: ColumnProfile) -> list[float]:
    numbers = _numbers(column)
    known = numbers[~np.isnan(numbers)]
    return [float(known.min()), float(known.max())] if len(known) else [0.0, 0.0]

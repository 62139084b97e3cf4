"""Describes a published data set: its files, impressions, rows with histories and configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from ibis.expr.types import IntegerValue, Table

from mail_torchrec.prepare.log_files import LogFile

Tables = Mapping[str, Table]
"""The well-formed lines of each file, by the file's name."""
_HOUR_SECONDS, _DAY_SECONDS = 3_600, 86_400


@dataclass(frozen=True)
class DatasetSpec:
    """One published data set.

    Args:
        about: a line or two for the head of the configuration, the codes of actions among them.
        files: the files as published.
        folders: folders in which an unpacked archive may have them.
        ticks_per_second: ticks of the log's clock in a second.
        utc_offset: seconds by which the log's midnight precedes that of UTC.
        days: first and last day of the published log.
        select_impressions: makes one row an impression of the files' tables, with columns ``user``
            and ``time`` (ticks) among others.
        add_features: adds features and histories to impressions; takes the impressions of some
            users, the tables of these users, and T, the maximum length of a history.
        build_config: makes the sections ``schema`` and ``train`` for histories of at most T events.
    """

    about: str
    files: tuple[LogFile, ...]
    folders: tuple[str, ...]
    ticks_per_second: int
    utc_offset: int
    days: tuple[date, date]
    select_impressions: Callable[[Tables], Table]
    add_features: Callable[[Table, Tables, int], Table]
    build_config: Callable[[int], dict[str, Any]]

    def ticks(self, days: tuple[date, date]) -> range:
        """Returns the ticks from the first midnight of ``days`` to before the last one's end."""
        first, end = (
            (int(datetime.combine(day, time(), UTC).timestamp()) - self.utc_offset)
            * self.ticks_per_second
            for day in (days[0], days[1] + timedelta(days=1))
        )
        return range(first, end)

    def day_number(self, time: IntegerValue) -> IntegerValue:
        """Computes the number of the day, which begins at the log's own midnight."""
        day = _DAY_SECONDS * self.ticks_per_second
        local = time + self.utc_offset * self.ticks_per_second
        return ((local - local % day) / day).cast("int64")


def hour_of_day(time: IntegerValue, ticks_per_second: int, utc_offset: int) -> IntegerValue:
    """Computes the hour of the day, 0 to 23; arguments as in :class:`DatasetSpec`."""
    hour = _HOUR_SECONDS * ticks_per_second
    of_day = (time + utc_offset * ticks_per_second) % (_DAY_SECONDS * ticks_per_second)
    return ((of_day - of_day % hour) / hour).cast("int32")


def join_features(rows: Table, table: Table, key: str) -> Table:
    """Adds the columns of ``table`` to ``rows`` by ``key``, null where ``table`` lacks the key."""
    return rows.left_join(table, key).drop(f"{key}_right")

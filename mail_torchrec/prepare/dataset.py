"""What a published data set is to the steps: files, impressions, rows with histories, a configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ibis.expr.types import IntegerValue, Table

from mail_torchrec.prepare.files import RawFile

Tables = Mapping[str, Table]
"""File name -> its good lines."""


@dataclass(frozen=True)
class Dataset:
    """One published data set.

    Args:
        about: a line or two for the top of the configuration, the codes of actions among them.
        files: as published.
        folders: where an unpacked archive may have them.
        second: ticks of the log's clock a second.
        utc_offset: seconds that the log's midnight is before that of UTC.
        impressions: what the log says of each, columns ``user`` and ``time`` (ticks) among it.
        rows: impressions of some users, these users' files, T -> the same rows with features and
            histories of at most T events.
        config: the sections ``schema`` and ``train`` for histories of so many events.
    """

    about: str
    files: tuple[RawFile, ...]
    folders: tuple[str, ...]
    second: int
    utc_offset: int
    impressions: Callable[[Tables], Table]
    rows: Callable[[Table, Tables, int], Table]
    config: Callable[[int], dict[str, Any]]

    def day(self, time: IntegerValue) -> IntegerValue:
        """The number of the day, by the log's own midnight."""
        local = time + self.utc_offset * self.second
        return ((local - local % (86_400 * self.second)) / (86_400 * self.second)).cast("int64")


def hour(time: IntegerValue, second: int, utc_offset: int) -> IntegerValue:
    """The hour of the day, 0 to 23."""
    of_day = (time + utc_offset * second) % (86_400 * second)
    return ((of_day - of_day % (3_600 * second)) / (3_600 * second)).cast("int32")


def look_up(rows: Table, table: Table, key: str) -> Table:
    """``rows`` with the columns of ``table`` beside them, null where it has no such key."""
    return rows.left_join(table, key).drop(f"{key}_right")

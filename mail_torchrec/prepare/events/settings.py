"""Settings of ``prepare events``: the tables, and the histories and labels made of them."""

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from mail_torchrec.settings import Settings, readable_faults
from mail_torchrec.utils.unique_keys import parse_yaml

_UNITS_US = {"ms": 1_000, "s": 10**6, "m": 60 * 10**6, "h": 3_600 * 10**6, "d": 86_400 * 10**6}
_DURATION = re.compile(r"[0-9]{1,15}(ms|s|m|h|d)")
_LONGEST_US = 36_525 * _UNITS_US["d"]


def _duration(value: object) -> object:
    is_duration = isinstance(value, str) and _DURATION.fullmatch(value)
    if not is_duration or duration_us(str(value)) > _LONGEST_US:
        raise ValueError(
            "should be a whole number and its unit (ms, s, m, h or d), such as 30s or 7d, and at "
            f"most 36525d, received {value!r:.60}"
        )
    return value


Duration = Annotated[str, BeforeValidator(_duration)]
"""A whole number and its unit: ``500ms``, ``30s``, ``10m``, ``1h``, ``7d``."""
TimeUnit = Literal["s", "ms", "us", "ns"]
Name = Annotated[str, Field(min_length=1)]
Scalar = bool | int | str
EVENT = "event"
"""Prefix of what every event has: ``event.log`` and ``event.time``."""


def duration_us(text: str) -> int:
    """Computes the microseconds of a :data:`Duration`."""
    number = text.rstrip("msdh")
    return int(number) * _UNITS_US[text[len(number) :]]


class InputSettings(Settings):
    """Files of one table, Parquet or CSV."""

    path: Name
    """A file, a folder (searched through), or a pattern such as ``clicks/day=2024-05-*``."""
    columns: list[Name] | dict[Name, Name] | None = None
    """Columns to take, or the column of the files by the name it is to have; by default all."""
    types: dict[Name, Literal["int64", "float64", "string", "bool", "timestamp"]] = {}
    """Types of columns of CSV files, where the first lines of a file would not tell them."""
    drop_duplicates: bool = False
    """Whether of rows that are equal in all columns taken only one is kept."""


class LogSettings(InputSettings):
    """A table whose rows have a user and a time."""

    user: Name | None = None
    """Column of the user; by default as for all logs."""
    time: Name | None = None
    """Column of the time; by default as for all logs."""
    unit: TimeUnit | None = None
    """Unit of a time that is a number (since 1970, UTC); by default as for all logs."""


class EventLogSettings(LogSettings):
    """A log of events: clicks, purchases, plays."""

    lag: Duration = "0s"
    """Time after which an event is known: an impression sees it only that much later."""


class CatalogueSettings(InputSettings):
    """Users, items or others by key, with a time of validity where they change."""

    key: Name
    """Column of the key; null in no row."""
    on: Name | None = None
    """Column of impressions and events that holds the key; by default of the key's own name."""
    valid_from: Name | None = None
    """Column of the time from which a row is valid, included; without it a row is always valid."""
    valid_until: Name | None = None
    """Column of the time until which a row is valid, excluded; null or none: until the next one."""
    unit: TimeUnit | None = None
    """Unit of times that are numbers; by default as for all logs."""
    lag: Duration = "0s"
    """Time after which a row is known."""

    @model_validator(mode="after")
    def _check_validity(self) -> Self:
        if self.valid_until and not self.valid_from:
            raise ValueError("valid_until needs valid_from; name the column of the begin, too")
        return self


class SelectionSettings(Settings):
    """A choice of events."""

    events: list[Name] = Field(min_length=1)
    """Names of event logs."""
    where: dict[Name, list[Scalar]] = {}
    """Values that a column of the log should have, such as ``action: [cart, purchase]``."""


class HistorySettings(SelectionSettings):
    """Aligned lists of the newest events that were known strictly before an impression."""

    max_length: int = Field(default=100, ge=1, le=2**31 - 1)
    """Most entries of a list."""
    parts: dict[Name, Name] = Field(min_length=1)
    """What each list holds: a column of the log, one of a catalogue as of the event
    (``items.category``), ``event.log`` (the log's name) or ``event.time``."""


class JoinedLabelSettings(SelectionSettings):
    """A label that is 1 where an event follows the impression."""

    within: Duration
    """Window from the impression's instant, included, to its end, excluded."""
    by: list[Name] = []
    """Columns in which the event equals the impression, besides the user: ``[item_id]``."""
    attribution: Literal["last", "all"] = "last"
    """Impressions that an event belongs to: the last one before it, or all whose window holds
    it."""
    drop_incomplete: bool = False
    """Whether impressions are left out whose window ends after the last event of the logs."""


class EventsSettings(Settings):
    """The file ``events.yaml``."""

    impressions: LogSettings
    """Rows to be made: all their columns are kept."""
    events: dict[Name, EventLogSettings] = {}
    """Logs by name."""
    catalogues: dict[Name, CatalogueSettings] = {}
    """Catalogues by name."""
    histories: dict[Name, HistorySettings] = {}
    """Histories by name; a name is for messages and counts only."""
    labels: dict[Name, JoinedLabelSettings] = {}
    """Labels from events; those that impressions have are columns like others."""
    user: Name = "user_id"
    """Column of the user in all logs."""
    time: Name = "time"
    """Column of the time in all logs."""
    unit: TimeUnit | None = None
    """Unit of times that are numbers."""
    day_begins: Duration = "0s"
    """Time by which midnight comes before that of UTC, for folders by day: ``8h`` in Beijing."""
    time_range: tuple[date, date] = (date(1990, 1, 1), date(2099, 12, 31))
    """First and last day of plausible times."""
    max_dropped: float = Field(default=0.01, ge=0.0, le=1.0)
    """Most rows of a log, as a share, that may be left out for want of a user or a plausible
    time."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        first, last = self.time_range
        if last < first:
            raise ValueError(f"time_range should begin before it ends, received {first}, {last}")
        if EVENT in self.catalogues:
            raise ValueError(f"a catalogue should not be called '{EVENT}'; choose another name")
        for section, selections in (("histories", self.histories), ("labels", self.labels)):
            for name, selection in selections.items():
                if unknown := [log for log in selection.events if log not in self.events]:
                    raise ValueError(
                        f"{section}.{name}: '{unknown[0]}' should be one of the logs under events, "
                        f"which are {', '.join(self.events) or 'none'}"
                    )
        return self


def load_events(path: Path) -> EventsSettings:
    """Reads ``events.yaml``.

    Raises:
        ValueError: the file is missing, no YAML, or does not fit; with each place.
    """
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"no file '{path}' ({error.strerror}); --config names it") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    try:
        return EventsSettings.model_validate(tree)
    except ValidationError as error:
        faults = readable_faults(error, EventsSettings)
        raise ValueError(f"{path} does not fit:\n{faults}") from None

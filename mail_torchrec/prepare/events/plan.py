"""Plan of what is read, joined and written, by names in queries; ``planner.py`` makes it."""

from dataclasses import dataclass

import pyarrow as pa

from mail_torchrec.prepare.events.settings import EVENT, Scalar
from mail_torchrec.prepare.events.table_plans import TablePlan

EVENT_PARTS = {f"{EVENT}.log": pa.string(), f"{EVENT}.time": pa.timestamp("us", "UTC")}


@dataclass(frozen=True)
class OutputColumn:
    """A column of the rows.

    Args:
        name: its name in the files that are written.
        query_name: its name in queries.
        type: its type in the files that are written.
        origin: what it comes from, for messages.
    """

    name: str
    query_name: str
    type: pa.DataType
    origin: str


@dataclass(frozen=True)
class CatalogueJoin:
    """Adds columns of a catalogue to rows.

    Args:
        catalogue: name of the catalogue.
        on: column of the rows, in queries.
        columns: columns of the catalogue, in queries.
    """

    catalogue: str
    on: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class LogSelection:
    """Events of one log for a history or a label.

    Args:
        log: name of the log.
        where: values to keep, by column in queries.
        joins: catalogues to join as of the event.
        values: columns in queries, in the order of the history's parts or of the label's ``by``;
            names of :data:`EVENT_PARTS` stand for themselves.
    """

    log: str
    where: dict[str, list[Scalar]]
    joins: tuple[CatalogueJoin, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class HistoryPlan:
    """One history.

    Args:
        logs: events of each log.
        lists: columns of the rows, one a part.
        max_length: most entries of a list.
    """

    logs: tuple[LogSelection, ...]
    lists: tuple[OutputColumn, ...]
    max_length: int


@dataclass(frozen=True)
class LabelPlan:
    """One label from events.

    Args:
        logs: events of each log.
        column: of the rows.
        by: columns of impressions, in queries.
        within_us: length of the window.
        is_last: an event belongs to the last impression before it only.
        drops_incomplete: rows are left out whose window the logs do not hold whole.
    """

    logs: tuple[LogSelection, ...]
    column: OutputColumn
    by: tuple[str, ...]
    within_us: int
    is_last: bool
    drops_incomplete: bool


@dataclass(frozen=True)
class EventsPlan:
    """All that is read, joined and written.

    Args:
        impressions: the table of impressions.
        events: tables of event logs by name.
        catalogues: tables of catalogues by name.
        joins: catalogues to join as of the impression.
        histories: histories by name.
        labels: labels from events, by name.
        columns: columns of the rows, in order.
        lags_us: microseconds after which events or rows are known, by log or catalogue.
    """

    impressions: TablePlan
    events: dict[str, TablePlan]
    catalogues: dict[str, TablePlan]
    joins: tuple[CatalogueJoin, ...]
    histories: dict[str, HistoryPlan]
    labels: dict[str, LabelPlan]
    columns: tuple[OutputColumn, ...]
    lags_us: dict[str, int]

    @property
    def tables(self) -> list[TablePlan]:
        """All tables, in the order in which they are read."""
        return [self.impressions, *self.events.values(), *self.catalogues.values()]

"""Resolves the settings against the files: what is read, joined, and written under which name.

Unknown columns, unequal types of keys and names that meet are found here, before a row is read.
"""

from collections.abc import Sequence

import pyarrow as pa

from mail_torchrec.prepare.events.plan import (
    EVENT_PARTS,
    CatalogueJoin,
    EventsPlan,
    HistoryPlan,
    LabelPlan,
    LogSelection,
    OutputColumn,
)
from mail_torchrec.prepare.events.settings import (
    CatalogueSettings,
    EventsSettings,
    HistorySettings,
    InputSettings,
    LogSettings,
    Scalar,
    TimeUnit,
    duration_us,
)
from mail_torchrec.prepare.events.table_files import InputFiles, common_type, find_files
from mail_torchrec.prepare.events.table_plans import (
    SelectedColumn,
    TablePlan,
    TimeColumn,
    check_unit,
    engine_type,
)
from mail_torchrec.prepare.events.times import check_time_type


def make_plan(settings: EventsSettings) -> EventsPlan:
    """Resolves the settings against the files.

    Raises:
        ValueError: a file or column is missing, or types or names do not fit; one line.
    """
    return _Planner(settings).plan()


class _Planner:
    """State of :func:`make_plan`: tables, whose columns are selected on the way."""

    def __init__(self, settings: EventsSettings) -> None:
        self.settings = settings
        self.impressions = self._log(0, "impressions", settings.impressions)
        self.events = {
            name: self._log(1 + index, f"events.{name}", log)
            for index, (name, log) in enumerate(settings.events.items())
        }
        self.catalogues = {
            name: self._catalogue(1 + len(self.events) + index, name, catalogue)
            for index, (name, catalogue) in enumerate(settings.catalogues.items())
        }
        for log in self.events.values():
            _check_equal_keys(self.impressions, self.impressions.key, log, log.key)

    def plan(self) -> EventsPlan:
        """Selects columns for each part of the settings."""
        settings = self.settings
        columns = [
            OutputColumn(name, column.query_name, column.type, "impressions")
            for name, column in self._own_columns(self.impressions, settings.impressions).items()
        ]
        joins = []
        for name, catalogue in settings.catalogues.items():
            table = self.catalogues[name]
            taken = self._own_columns(table, catalogue)
            if taken:
                joins.append(self._join(name, self.impressions, list(taken)))
                columns += [
                    OutputColumn(own, column.query_name, column.type, f"catalogues.{name}")
                    for own, column in taken.items()
                ]
        histories = {name: self._history(name) for name in settings.histories}
        labels = {name: self._label(name) for name in settings.labels}
        columns += [column for history in histories.values() for column in history.lists]
        columns += [label.column for label in labels.values()]
        _check_unique(columns)
        lagged = {
            **{f"events.{name}": log.lag for name, log in settings.events.items()},
            **{f"catalogues.{name}": table.lag for name, table in settings.catalogues.items()},
        }
        return EventsPlan(
            self.impressions,
            self.events,
            self.catalogues,
            tuple(joins),
            histories,
            labels,
            tuple(columns),
            {name: duration_us(lag) for name, lag in lagged.items()},
        )

    def _log(self, index: int, label: str, settings: LogSettings) -> TablePlan:
        files = find_files(label, settings)
        key, source = settings.user or self.settings.user, settings.time or self.settings.time
        time = _time_column(
            files, source, settings.unit or self.settings.unit, f"{label}.time", True
        )
        check_unit(files, settings.unit, [time], label)
        _check_key_type(files.type(key, f"{label}.user"), files.paths[0], key, f"{label}.user")
        renamed, drops = _renamed(settings), settings.drop_duplicates
        return TablePlan(files, index, key, time, None, renamed, True, False, drops)

    def _catalogue(self, index: int, name: str, settings: CatalogueSettings) -> TablePlan:
        label = f"catalogues.{name}"
        files = find_files(label, settings)
        unit = settings.unit or self.settings.unit
        since = _time_column(files, settings.valid_from, unit, f"{label}.valid_from", False)
        until = _time_column(files, settings.valid_until, unit, f"{label}.valid_until", False)
        check_unit(files, settings.unit, [since, until], label)
        kind = files.type(settings.key, f"{label}.key")
        _check_key_type(kind, files.paths[0], settings.key, f"{label}.key")
        logs = [self.impressions, *self.events.values()]
        on = settings.on or settings.key
        is_by_user = all(log.renamed.get(on, on) == log.key for log in logs)
        renamed, drops = _renamed(settings), settings.drop_duplicates
        return TablePlan(files, index, settings.key, since, until, renamed, is_by_user, True, drops)

    def _own_columns(self, table: TablePlan, settings: InputSettings) -> dict[str, SelectedColumn]:
        """Selects the columns that rows take from impressions or a catalogue."""
        if settings.columns is not None:
            names = list(settings.columns)
        else:
            times = [column.source for column in (table.time, table.until) if column]
            hidden = {table.key, *times} if table.is_catalogue else set()
            names = [name for name in table.files.types if name not in hidden]
        return {name: table.select(name, f"{table.label}.columns") for name in names}

    def _join(self, name: str, table: TablePlan, columns: Sequence[str]) -> CatalogueJoin:
        """Plans the join of a catalogue to a log."""
        catalogue = self.catalogues[name]
        on = self.settings.catalogues[name].on or catalogue.key
        role = f"catalogues.{name}.on, in {table.label}"
        selected = table.select(on, role)
        _check_equal_keys(table, selected.source, catalogue, catalogue.key)
        names = [catalogue.select(column, f"catalogues.{name}").query_name for column in columns]
        return CatalogueJoin(name, selected.query_name, tuple(names))

    def _history(self, name: str) -> HistoryPlan:
        history = self.settings.histories[name]
        logs, types = [], []
        for log in history.events:
            selection, found = self._history_of_log(name, log, history)
            logs.append(selection)
            types.append(found)
        lists = []
        for index, part in enumerate(history.parts):
            role = f"histories.{name}.parts.{part}"
            kind = _one_type(role, history.events, [found[index] for found in types])
            number = list(self.settings.histories).index(name)
            lists.append(OutputColumn(part, f"h{number}_{index:03}", pa.list_(kind), role))
        return HistoryPlan(tuple(logs), tuple(lists), history.max_length)

    def _history_of_log(
        self, name: str, log: str, history: HistorySettings
    ) -> tuple[LogSelection, list[pa.DataType]]:
        """Plans what a history takes of one log: the selection and the types of its parts."""
        table, values, types = self.events[log], [], []
        of_catalogues: dict[str, list[str]] = {}
        for part, source in history.parts.items():
            prefix, _, column = source.partition(".")
            role = f"histories.{name}.parts.{part}"
            if source in EVENT_PARTS:
                values.append(source)
                types.append(EVENT_PARTS[source])
                continue
            if prefix in self.catalogues and column:
                selected = self.catalogues[prefix].select(column, role)
                of_catalogues.setdefault(prefix, []).append(column)
            else:
                selected = table.select(source, role)
            if pa.types.is_list(engine_type(selected.type)):
                raise ValueError(
                    f"{role}: an entry of a list should be one value, received {selected.type}; "
                    "take another column"
                )
            values.append(selected.query_name)
            types.append(selected.type)
        joins = tuple(self._join(key, table, names) for key, names in of_catalogues.items())
        where = self._where(f"histories.{name}.where", log, history.where)
        return LogSelection(log, where, joins, tuple(values)), types

    def _label(self, name: str) -> LabelPlan:
        label = self.settings.labels[name]
        role = f"labels.{name}"
        logs = []
        own = [self.impressions.select(column, f"{role}.by") for column in label.by]
        for log in label.events:
            table = self.events[log]
            values = [table.select(column, f"{role}.by") for column in label.by]
            for mine, theirs in zip(own, values, strict=True):
                _check_equal_keys(self.impressions, mine.source, table, theirs.source)
            where = self._where(f"{role}.where", log, label.where)
            names = tuple(column.query_name for column in values)
            logs.append(LogSelection(log, where, (), names))
        column = OutputColumn(name, f"l{list(self.settings.labels).index(name)}", pa.int32(), role)
        return LabelPlan(
            tuple(logs),
            column,
            tuple(column.query_name for column in own),
            duration_us(label.within),
            label.attribution == "last",
            label.drop_incomplete,
        )

    def _where(
        self, role: str, log: str, where: dict[str, list[Scalar]]
    ) -> dict[str, list[Scalar]]:
        """Resolves a filter, whose values are of the column's type."""
        table, found = self.events[log], {}
        for name, values in where.items():
            column = table.select(name, role)
            kind = engine_type(column.type)
            wanted = {pa.string(): str, pa.bool_(): bool, pa.int64(): int}.get(kind)
            if wanted is None or any(type(value) is not wanted for value in values):
                raise ValueError(
                    f"{role}.{name}: values should be of the type of column '{column.source}' in "
                    f"{table.files.paths[0]} ({column.type}), received {values}; write such values"
                )
            found[column.query_name] = values
        return found


def _time_column(
    files: InputFiles, source: str | None, unit: TimeUnit | None, role: str, is_log: bool
) -> TimeColumn | None:
    """Checks that a column can be a time; None where none is named."""
    if source is None:
        return None
    where = f"{files.paths[0]}: column '{source}' ({role})"
    check_time_type(files.type(source, role), unit, where, is_log)
    return TimeColumn(source, unit, role)


def _renamed(settings: InputSettings) -> dict[str, str]:
    return settings.columns if isinstance(settings.columns, dict) else {}


def _check_key_type(kind: pa.DataType, path: object, column: str, role: str) -> None:
    """Checks that a key is a whole number or text."""
    if kind == pa.string() or (pa.types.is_integer(kind) and kind != pa.uint64()):
        return
    reason = ": nulls make floats of integers in pandas" if pa.types.is_floating(kind) else ""
    raise ValueError(
        f"{path}: column '{column}' ({role}) should be an integer of at most 64 bits with a sign, "
        f"or text, received {kind}{reason}; write it as one of these"
    )


def _check_equal_keys(left: TablePlan, column: str, right: TablePlan, other: str) -> None:
    """Checks that two columns that are compared are of one type."""
    first, second = left.files.types[column], right.files.types[other]
    for table, name, kind in ((left, column, first), (right, other, second)):
        _check_key_type(kind, table.files.paths[0], name, f"compared, in {table.label}")
    if engine_type(first) != engine_type(second):
        raise ValueError(
            f"{right.files.paths[0]}: column '{other}' should be {first}, as '{column}' in "
            f"{left.files.paths[0]}, received {second}; write both as one type (of a CSV file: "
            f"{right.label}.types)"
        )


def _one_type(role: str, logs: Sequence[str], types: list[pa.DataType]) -> pa.DataType:
    kind = common_type(types)
    if kind is None:
        found = ", ".join(f"{kind} in {log}" for log, kind in zip(logs, types, strict=True))
        raise ValueError(
            f"{role}: the part should have one type in all logs, received {found}; write one "
            "type, or make a history of each log"
        )
    return kind


def _check_unique(columns: list[OutputColumn]) -> None:
    """Checks that no two columns of the rows have one name."""
    by_name: dict[str, OutputColumn] = {}
    for column in columns:
        first = by_name.setdefault(column.name, column)
        if first is not column:
            raise ValueError(
                f"column '{column.name}' should come from one place, received it from "
                f"{first.origin} and {column.origin}; name others under 'columns' of one of them, "
                "which also renames: columns: {NEW_NAME: NAME_IN_FILE}"
            )

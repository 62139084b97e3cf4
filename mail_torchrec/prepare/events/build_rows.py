"""Builds the rows of one bucket of users: impressions, catalogues, histories and labels."""

from collections.abc import Mapping
from functools import reduce

import ibis
from ibis.expr.types import Table, Value

from mail_torchrec.prepare.events.as_of import earliest_after, join_catalogue, latest_before
from mail_torchrec.prepare.events.plan import EventsPlan, HistoryPlan, LabelPlan, LogSelection
from mail_torchrec.prepare.histories import add_histories

Tables = Mapping[str, Table]
"""Rows of each table in one bucket, by the table's place in the settings."""


def build_rows(plan: EventsPlan, tables: Tables, last_us: Mapping[str, int]) -> Table:
    """Builds the rows of one bucket, in order of time.

    Args:
        plan: what to join.
        tables: rows of each table, with ``user`` (impressions, logs) or ``key``, and ``time``.
        last_us: time of the last event of each log, by the log's name.

    Returns:
        Columns ``user``, ``time``, those of the plan, and for each joined catalogue ``m0``,
        ``m1``, ..., true where it had a valid row.
    """
    impressions = rows = tables["impressions"]
    for number, join in enumerate(plan.joins):
        label = f"catalogues.{join.catalogue}"
        rows = join_catalogue(rows, tables[label], join, f"m{number}", plan.lags_us[label])
    for history in plan.histories.values():
        rows = _join_history(rows, impressions, plan, history, tables)
    for label_plan in plan.labels.values():
        rows = _join_label(rows, impressions, label_plan, tables)
        if label_plan.drops_incomplete:
            last = min(last_us[log.log] for log in label_plan.logs)
            rows = rows.filter(rows.time <= last - label_plan.within_us)
    flags = [f"m{number}" for number in range(len(plan.joins))]
    return rows.select("user", "time", *(column.query_name for column in plan.columns), *flags)


def sort_order(plan: EventsPlan, rows: Table) -> list[Value]:
    """Lists what rows are sorted by: time, user, and all else that impressions have."""
    own = [column.query_name for column in plan.columns if column.origin == "impressions"]
    scalars = [name for name in own if not rows[name].type().is_array()]
    return [rows[name] for name in ("time", "user", *scalars)]


def _select_events(selection: LogSelection, plan: EventsPlan | None, tables: Tables) -> Table:
    """Selects events of a log: ``user``, ``time`` and the values ``v000``, ``v001``, ..."""
    events = tables[f"events.{selection.log}"]
    for name, allowed in selection.where.items():
        events = events.filter(events[name].isin(allowed))
    for number, join in enumerate(selection.joins):
        assert plan is not None, "labels join no catalogue"
        label = f"catalogues.{join.catalogue}"
        lag = plan.lags_us[label]
        events = join_catalogue(events, tables[label], join, f"m{number}", lag)
    own = {"event.log": ibis.literal(selection.log), "event.time": events.time}
    values = {
        f"v{number:03}": own[name] if name in own else events[name]
        for number, name in enumerate(selection.values)
    }
    return events.select("user", "time", **values)


def _join_history(
    rows: Table, impressions: Table, plan: EventsPlan, history: HistoryPlan, tables: Tables
) -> Table:
    """Adds the lists of one history; empty where nothing was known before, never null."""
    logs = []
    for selection in history.logs:
        events = _select_events(selection, plan, tables)
        # An event that is known later is, for an impression, one that happens later.
        known = events.time + plan.lags_us[f"events.{selection.log}"]
        logs.append(events.mutate(time=known))
    events = reduce(lambda first, second: first.union(second), logs)
    lists = {column.query_name: f"v{number:03}" for number, column in enumerate(history.lists)}
    instants = impressions.select("user", "time").drop_null("user").distinct()
    found = add_histories(instants, events, lists, history.max_length)
    rows = rows.left_join(found, ["user", "time"]).drop("user_right", "time_right")
    return rows.mutate(
        **{name: rows[name].fill_null(ibis.literal([], rows[name].type())) for name in lists}
    )


def _join_label(rows: Table, impressions: Table, label: LabelPlan, tables: Tables) -> Table:
    """Adds a label: 1 where an event of the user follows within the window, else 0."""
    by = {f"v{number:03}": name for number, name in enumerate(label.by)}
    keys = ["user", *by]
    selected = [_select_events(selection, None, tables) for selection in label.logs]
    events = reduce(lambda first, second: first.union(second), selected)
    shown = impressions.select(
        "user", "time", **{value: impressions[name] for value, name in by.items()}
    )
    if label.is_last:
        found = latest_before(events, shown, keys)
        found = found.filter(found.time < found.latest + label.within_us)
        found = found.select(*keys, time=found.latest).distinct()
    else:
        found = earliest_after(shown, events, keys)
        found = found.filter(found.earliest < found.time + label.within_us).drop("earliest")
    name = label.column.query_name
    found = found.rename({column: value for value, column in by.items()})
    found = found.mutate({name: ibis.literal(1, "int64")})
    keys = ["user", *label.by, "time"]
    joined = rows.left_join(found, keys).drop(*(f"{key}_right" for key in keys))
    return joined.mutate({name: joined[name].fill_null(0)})

"""The one history algorithm: of each impression the newest T events strictly before it, oldest first.

A user's events, in order of time, are numbered 0, 1, 2, ... and cut into pages of T. An impression
that ``seen`` events precede finds the end of its history on the page of event ``seen - 1``, and the
rest on the page before::

    T = 4, seen = 6        page 0: [e0 e1 e2 e3]   page 4: [e4 e5 e6 e7]
    history                             e2 e3                e4 e5

So no row ever holds more than 2 T events, however active its user is, and there are equality joins
only.
"""

from collections.abc import Mapping

import ibis
from ibis.expr.types import ArrayValue, Table


def with_histories(rows: Table, events: Table, lists: Mapping[str, str], length: int) -> Table:
    """Adds lists of the events before each row.

    Events of the same instant as a row are not before it. Events of one instant have no order in a
    log; here they stand in the order of their values, so that the result depends on nothing else.

    Args:
        rows: columns ``user`` and ``time`` (int64), and others.
        events: columns ``user`` and ``time``, and those that ``lists`` names.
        lists: name of a list to add -> column of ``events`` that it holds. The lists are aligned.
        length: T, the most entries a list.

    Returns:
        ``rows`` and the lists; a list is empty, never null, where nothing came before.
    """
    values = sorted(set(lists.values()))
    walk = _walk(rows, events, values)
    pages = _pages(walk, values, length)
    moments = walk.filter(walk.is_event == 0).select("user", "time", "seen")
    first = (
        moments.seen - 1 - (moments.seen - 1) % length
    )  # of the page that holds event `seen - 1`
    moments = moments.mutate(page=first, page_before=first - length)
    older = pages.rename(page_before="page", **{f"{value}_before": value for value in values})
    both = moments.left_join(pages, ["user", "page"]).drop("user_right", "page_right")
    both = both.left_join(older, ["user", "page_before"]).drop("user_right", "page_before_right")
    histories = both.select(
        "user", "time", **{name: _cut(both, value, length) for name, value in lists.items()}
    )
    return rows.join(histories, ["user", "time"])


def _walk(rows: Table, events: Table, values: list[str]) -> Table:
    """Events and the distinct instants of rows, each with the number of events up to it: ``seen``, an event itself included."""
    types = events.schema()
    moments = rows.select("user", "time").distinct()
    moments = moments.mutate(
        **{value: ibis.null(types[value]) for value in values}, is_event=ibis.literal(0, "int64")
    )
    marks = (
        events.select("user", "time", *values)
        .mutate(is_event=ibis.literal(1, "int64"))
        .union(moments)
    )
    window = ibis.cumulative_window(group_by="user", order_by=["time", "is_event", *values])
    return marks.mutate(seen=marks.is_event.sum().over(window))


def _pages(walk: Table, values: list[str], length: int) -> Table:
    """One row a page: ``user``, ``page`` (the number of its first event), and of each value a list in order of time."""
    events = walk.filter(walk.is_event == 1)
    events = events.mutate(place=events.seen - 1)
    entry = ibis.struct({"place": events.place} | {value: events[value] for value in values})
    page = events.place - events.place % length
    pages = events.group_by("user", page=page).agg(entries=entry.collect())
    entries = (
        pages.entries.sort()
    )  # by place; an ordered aggregate would be shorter, and Spark has none
    return pages.select(
        "user",
        "page",
        **{value: entries.map(lambda entry, value=value: entry[value]) for value in values},
    )


def _cut(both: Table, value: str, length: int) -> ArrayValue:
    empty = ibis.literal([], both[value].type())
    before = both[f"{value}_before"].fill_null(empty)
    joined = before.concat(both[value].fill_null(empty))
    end = before.length() + both.seen - both.page
    return joined[end - ibis.least(both.seen, length) : end]

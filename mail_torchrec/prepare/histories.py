"""Builds histories: for each impression the newest T events strictly before it, oldest first.

A user's events, in order of time, are numbered 0, 1, 2, ... and cut into blocks of T. The history
of an impression that ``num_before`` events precede ends in the block of event ``num_before - 1``,
and the rest of it is in the block before::

    T = 4, num_before = 6     block 0: [e0 e1 e2 e3]   block 4: [e4 e5 e6 e7]
    history                                e2 e3                 e4 e5

So no row ever holds more than 2 T events, however active its user is, and there are equality joins
only.
"""

from collections.abc import Mapping, Sequence

import ibis
from ibis.expr.types import ArrayValue, Table


def add_histories(rows: Table, events: Table, lists: Mapping[str, str], length: int) -> Table:
    """Adds lists of the events before each row.

    Events of the same instant as a row are not before it. Events of one instant have no order in a
    log; here they stand in the order of their values, so that the result depends on nothing else.

    Args:
        rows: columns ``user`` and ``time`` (int64), and others.
        events: columns ``user`` and ``time``, and those that ``lists`` names.
        lists: column of ``events`` by the name of the list to add. The lists are aligned.
        length: T, the most entries a list.

    Returns:
        ``rows`` and the lists; a list is empty, never null, where nothing came before.
    """
    values = sorted(set(lists.values()))
    timeline = _number_events(rows, events, values)
    blocks = _blocks(timeline, values, length)
    joined = _join_blocks(timeline.filter(timeline.is_event == 0), blocks, values, length)
    columns = {name: _newest(joined, value, length) for name, value in lists.items()}
    return rows.join(joined.select("user", "time", **columns), ["user", "time"])


def _number_events(rows: Table, events: Table, values: Sequence[str]) -> Table:
    """Merges events and the distinct instants of rows, and counts the events up to each.

    Returns:
        Columns ``user``, ``time``, the values (null for instants), ``is_event`` (1 or 0) and
        ``num_before``, which counts an event itself.
    """
    types = events.schema()
    instants = rows.select("user", "time").distinct()
    nulls = {value: ibis.null(types[value]) for value in values}
    instants = instants.mutate(**nulls, is_event=ibis.literal(0, "int64"))
    marked = events.select("user", "time", *values).mutate(is_event=ibis.literal(1, "int64"))
    merged = marked.union(instants)
    window = ibis.cumulative_window(group_by="user", order_by=["time", "is_event", *values])
    return merged.mutate(num_before=merged.is_event.sum().over(window))


def _blocks(timeline: Table, values: Sequence[str], length: int) -> Table:
    """Collects each user's events into blocks of ``length``.

    Returns:
        One row a block: ``user``, ``block`` (the number of its first event), and of each value a
        list in order of time.
    """
    events = timeline.filter(timeline.is_event == 1)
    events = events.mutate(number=events.num_before - 1)
    entry = ibis.struct({"number": events.number} | {value: events[value] for value in values})
    block = events.number - events.number % length
    blocks = events.group_by("user", block=block).agg(entries=entry.collect())
    # Sorted by number; an ordered aggregate would be shorter, and Spark has none.
    entries = blocks.entries.sort()
    lists = {value: entries.map(lambda entry, value=value: entry[value]) for value in values}
    return blocks.select("user", "block", **lists)


def _join_blocks(instants: Table, blocks: Table, values: Sequence[str], length: int) -> Table:
    """Joins each instant with the block in which its history ends, and with the one before."""
    instants = instants.select("user", "time", "num_before")
    last = instants.num_before - 1
    block = last - last % length
    instants = instants.mutate(block=block, block_before=block - length)
    before = {f"{value}_before": value for value in values}
    older = blocks.rename(block_before="block", **before)
    joined = instants.left_join(blocks, ["user", "block"]).drop("user_right", "block_right")
    return joined.left_join(older, ["user", "block_before"]).drop(
        "user_right", "block_before_right"
    )


def _newest(joined: Table, value: str, length: int) -> ArrayValue:
    """Cuts the newest ``length`` entries before the instant out of its two blocks."""
    empty = ibis.literal([], joined[value].type())
    before = joined[f"{value}_before"].fill_null(empty)
    both = before.concat(joined[value].fill_null(empty))
    end = before.length() + joined.num_before - joined.block
    return both[end - ibis.least(joined.num_before, length) : end]

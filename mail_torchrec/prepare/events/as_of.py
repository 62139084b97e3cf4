"""Joins as of a time: rows with the version of a catalogue that was valid, in equality joins only.

For each key the instants of rows and the times of versions are merged in order; the greatest time
of a version so far is the version's own, by which it is joined::

    version   v1 at 3          v2 at 7
    rows               at 5            at 7        at 9
    latest             3               7           7
"""

import ibis
from ibis.expr.types import Table

from mail_torchrec.prepare.events.plan import CatalogueJoin


def latest_before(rows: Table, marks: Table, keys: list[str]) -> Table:
    """Finds for each instant of rows the last mark at or before it.

    Args:
        rows: columns ``keys`` and ``time``.
        marks: the same columns.
        keys: columns that are equal; rows with a null among them have no mark.

    Returns:
        One row an instant with a mark: ``keys``, ``time`` and ``latest``.
    """
    merged = _merged(rows, marks, keys)
    window = ibis.cumulative_window(group_by=keys, order_by=[merged.time, merged.is_instant])
    found = merged.mutate(latest=merged.mark.max().over(window))
    found = found.filter((found.is_instant == 1) & found.latest.notnull())
    return found.select(*keys, "time", "latest")


def earliest_after(rows: Table, marks: Table, keys: list[str]) -> Table:
    """Finds for each instant of rows the first mark at or after it; see :func:`latest_before`.

    Returns:
        One row an instant with a mark: ``keys``, ``time`` and ``earliest``.
    """
    merged = _merged(rows, marks, keys)
    order = [merged.time.desc(), merged.is_instant]
    window = ibis.cumulative_window(group_by=keys, order_by=order)
    found = merged.mutate(earliest=merged.mark.min().over(window))
    found = found.filter((found.is_instant == 1) & found.earliest.notnull())
    return found.select(*keys, "time", "earliest")


def join_catalogue(
    rows: Table, catalogue: Table, join: CatalogueJoin, matched: str, lag_us: int
) -> Table:
    """Adds the columns of a catalogue, as of the time of each row.

    Args:
        rows: with the column ``join.on``, and ``time`` in microseconds.
        catalogue: ``key``, perhaps ``time`` and ``until`` of validity, and its columns.
        join: the columns.
        matched: name of a further column, true where a row of the catalogue is valid.
        lag_us: microseconds after which a row of the catalogue is known.

    Returns:
        As many rows, with null in the columns where nothing is valid.
    """
    on = join.on
    catalogue = catalogue.rename({on: "key"}).mutate({matched: ibis.literal(True)})
    if "time" not in catalogue.columns:
        table = catalogue.select(on, *join.columns, matched)
        joined = rows.left_join(table, on).drop(f"{on}_right")
        return joined.mutate({matched: joined[matched].fill_null(False)})
    catalogue = catalogue.mutate(time=catalogue.time + lag_us)
    latest = latest_before(rows, catalogue, [on])
    rows = rows.left_join(latest, [on, "time"]).drop(f"{on}_right", "time_right")
    until = catalogue.until + lag_us if "until" in catalogue.columns else ibis.null("int64")
    table = catalogue.select(on, *join.columns, matched, latest="time", valid_until=until)
    joined = rows.left_join(table, [on, "latest"]).drop(f"{on}_right", "latest_right")
    is_valid = joined[matched].fill_null(False) & (
        joined.valid_until.isnull() | (joined.time < joined.valid_until)
    )
    values = {name: ibis.ifelse(is_valid, joined[name], None) for name in join.columns}
    return joined.mutate(**values, **{matched: is_valid}).drop("latest", "valid_until")


def overlapping_versions(catalogue: Table) -> Table:
    """Finds rows of a catalogue that are valid when another one of their key begins to be.

    Args:
        catalogue: ``key``, ``place``, perhaps ``time`` and ``until``.

    Returns:
        Columns ``key``, ``place`` and ``other``, the places of both rows.
    """
    always = ibis.literal(0, "int64")
    time = catalogue.time if "time" in catalogue.columns else always
    until = catalogue.until if "until" in catalogue.columns else ibis.null("int64")
    table = catalogue.select("key", "place", time=time, until=until)
    window = ibis.window(group_by="key", order_by=[table.time, table.place])
    table = table.mutate(
        next_time=table.time.lead().over(window), other=table.place.lead().over(window)
    )
    overlaps = (table.next_time == table.time) | (table.until > table.next_time)
    return table.filter(table.other.notnull() & overlaps).select("key", "place", "other")


def _merged(rows: Table, marks: Table, keys: list[str]) -> Table:
    """Merges distinct instants and marks: ``keys``, ``time``, ``mark`` and ``is_instant``."""
    instants, times = (
        table.select(*keys, "time").drop_null(keys).distinct() for table in (rows, marks)
    )
    instants = instants.mutate(mark=ibis.null("int64"), is_instant=ibis.literal(1, "int64"))
    return times.mutate(mark=times.time, is_instant=ibis.literal(0, "int64")).union(instants)

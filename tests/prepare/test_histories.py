"""Histories against brute force."""

import duckdb
import ibis
import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from mail_torchrec.prepare.histories import add_histories
from tests.support.raw_logs import newest_before

INSTANTS = st.tuples(st.integers(0, 2), st.integers(-3, 8))
EVENTS = st.lists(
    st.tuples(INSTANTS, st.integers(0, 3), st.none() | st.integers(0, 2)), max_size=40
)
CONNECTION = duckdb.connect()


def histories(
    rows: list[tuple[int, int]], events: list[tuple[int, int, int, int | None]], length: int
) -> list[tuple[object, ...]]:
    for name, width, values in (
        ("r", 3, [(*row, place) for place, row in enumerate(rows)]),
        ("e", 4, events),
    ):
        CONNECTION.execute(
            f"CREATE OR REPLACE TABLE {name} "
            f"({', '.join(f'c{column} BIGINT' for column in range(width))})"
        )
        if values:
            CONNECTION.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * width)})", values)
    table = ibis.table({"c0": "int64", "c1": "int64", "c2": "int64"}, name="r").rename(
        user="c0", time="c1", place="c2"
    )
    log = ibis.table({f"c{i}": "int64" for i in range(4)}, name="e").rename(
        user="c0", time="c1", item="c2", action="c3"
    )
    found = add_histories(table, log, {"items": "item", "actions": "action"}, length).order_by(
        "place"
    )
    return CONNECTION.execute(
        str(ibis.to_sql(found.select("user", "time", "items", "actions"), dialect="duckdb"))
    ).fetchall()


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(INSTANTS, max_size=12), events=EVENTS, length=st.integers(1, 5))
def test_a_history_is_the_newest_events_strictly_before_its_row(
    rows: list[tuple[int, int]], events: list[tuple[tuple[int, int], int, int | None]], length: int
) -> None:
    flat = [(user, time, item, action) for (user, time), item, action in events]
    # At one instant: by action, then by item (the values' names in order), nulls last.
    ordered = sorted(flat, key=lambda event: (event[3] is None, event[3] or 0, event[2]))
    expected = []
    for user, time in rows:
        history = newest_before(
            [(who, when, (item, action)) for who, when, item, action in ordered], user, time, length
        )
        expected.append(
            (user, time, [item for item, _ in history], [action for _, action in history])
        )
    assert histories(rows, flat, length) == expected


def test_an_event_of_the_same_instant_is_not_before() -> None:
    assert histories([(1, 5), (1, 6)], [(1, 5, 7, 0), (2, 1, 8, 0)], 100) == [
        (1, 5, [], []),
        (1, 6, [7], [0]),
    ]


def test_a_history_longer_than_a_page_crosses_pages() -> None:
    events = [(1, time, time, 0) for time in range(10)]
    [(_, _, items, _)] = histories([(1, 6)], events, 4)
    assert items == [2, 3, 4, 5]


def test_many_events_worked_on_in_parallel_stay_in_order() -> None:
    random = np.random.default_rng(0)
    users, times = random.integers(0, 40, 300_000), random.permutation(300_000)
    CONNECTION.register("many", pa.table({"user": users, "time": times}))
    CONNECTION.register("last", pa.table({"user": np.arange(40), "time": np.full(40, 10**6)}))
    log, rows = (
        ibis.table({"user": "int64", "time": "int64"}, name=name) for name in ("many", "last")
    )
    query = add_histories(rows, log.mutate(at=log.time), {"times": "at"}, 3_000).select(
        "user", "times"
    )
    found = dict(CONNECTION.execute(str(ibis.to_sql(query, dialect="duckdb"))).fetchall())
    assert found == {user: np.sort(times[users == user])[-3_000:].tolist() for user in range(40)}

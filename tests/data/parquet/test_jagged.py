"""Jagged arrays: rows taken, cut and appended equal plain lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mail_torchrec.data.parquet.jagged import JaggedArray

LISTS = st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6), min_size=1, max_size=8)


def jagged(rows: list[list[int]]) -> JaggedArray:
    return JaggedArray(
        np.array([x for row in rows for x in row], dtype=np.int64),
        np.array([len(row) for row in rows], dtype=np.int64),
    )


def rows_of(part: JaggedArray) -> list[list[int]]:
    rows, values = [], iter(part.values.tolist())
    for length in part.lengths.tolist():
        rows.append([next(values) for _ in range(length)])
    assert next(values, None) is None
    return rows


def test_the_example_of_the_docstring() -> None:
    part = jagged([[7, 8], [], [9]])
    assert (part.values.tolist(), part.lengths.tolist()) == ([7, 8, 9], [2, 0, 1])
    assert part.starts.tolist() == [0, 2, 2]


@given(LISTS, st.data())
def test_jagged_take(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    assert rows_of(jagged(rows).take(np.array(chosen, dtype=np.int64))) == [rows[i] for i in chosen]
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(rows)), st.integers(0, len(rows)))))
    assert rows_of(jagged(rows).take(slice(start, stop))) == rows[start:stop]


@given(LISTS, st.integers(1, 7), st.data())
def test_jagged_newest(rows: list[list[int]], limit: int, data: st.DataObject) -> None:
    assert rows_of(jagged(rows).newest(limit)) == [row[-limit:] for row in rows]
    limits = data.draw(st.lists(st.integers(0, 7), min_size=len(rows), max_size=len(rows)))
    expected = [row[max(len(row) - limit, 0) :] for row, limit in zip(rows, limits, strict=True)]
    assert rows_of(jagged(rows).newest(np.array(limits))) == expected


@given(st.lists(LISTS, min_size=1, max_size=4))
def test_jagged_concatenate(parts: list[list[list[int]]]) -> None:
    assert rows_of(JaggedArray.concatenate([jagged(part) for part in parts])) == [
        row for part in parts for row in part
    ]

"""One column at a time: ragged rows, ids in plain form, numbers; and what is refused."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail_torchrec.data.parquet.arrow import (
    JaggedArray,
    binary,
    list_lengths,
    newest_ids,
    numbers,
    plain_ids,
)
from mail_torchrec.data.schema.schema import Transform

LISTS = st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6), min_size=1, max_size=8)


def ragged(rows: list[list[int]]) -> JaggedArray:
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
    part = ragged([[7, 8], [], [9]])
    assert (part.values.tolist(), part.lengths.tolist()) == ([7, 8, 9], [2, 0, 1])
    assert part.starts.tolist() == [0, 2, 2]


@given(LISTS, st.data())
def test_ragged_take(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    assert rows_of(ragged(rows).take(np.array(chosen, dtype=np.int64))) == [rows[i] for i in chosen]
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(rows)), st.integers(0, len(rows)))))
    assert rows_of(ragged(rows).take(slice(start, stop))) == rows[start:stop]


@given(LISTS, st.integers(1, 7), st.data())
def test_ragged_newest(rows: list[list[int]], limit: int, data: st.DataObject) -> None:
    assert rows_of(ragged(rows).newest(limit)) == [row[-limit:] for row in rows]
    limits = data.draw(st.lists(st.integers(0, 7), min_size=len(rows), max_size=len(rows)))
    expected = [row[max(len(row) - limit, 0) :] for row, limit in zip(rows, limits, strict=True)]
    assert rows_of(ragged(rows).newest(np.array(limits))) == expected


@given(st.lists(LISTS, min_size=1, max_size=4))
def test_ragged_concatenate(parts: list[list[list[int]]]) -> None:
    assert rows_of(JaggedArray.concatenate([ragged(part) for part in parts])) == [
        row for part in parts for row in part
    ]


@given(
    st.lists(st.none() | st.lists(st.none() | st.integers(-9, 9), max_size=6), max_size=8),
    st.lists(st.integers(0, 6), min_size=8, max_size=8),
    st.sampled_from(
        [
            pa.list_(pa.int64()),
            pa.large_list(pa.int8()),
            pa.list_(pa.dictionary(pa.int8(), pa.int32())),
        ]
    ),
    st.data(),
)
def test_newest_ids_equal_plain_python(
    rows: list[list[int | None] | None], limits: list[int], kind: pa.DataType, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    column = pa.chunked_array([pa.array(part, kind) for part in (rows[:cut], rows[cut:])])
    ids, lengths = newest_ids(column, np.array(limits[: len(rows)], np.int64), file="f", name="n")
    expected = [(row or [])[max(len(row or []) - limits[i], 0) :] for i, row in enumerate(rows)]
    assert ids.to_pylist() == [value for row in expected for value in row]
    assert lengths.tolist() == [len(row) for row in expected]
    assert list_lengths(column).tolist() == [len(row or []) for row in rows]


def test_lists_of_one_size_may_be_null() -> None:
    column = pa.chunked_array([pa.array([[1, 2], None, [3, None]], pa.list_(pa.int32(), 2))])
    ids, lengths = newest_ids(column, 1, file="f", name="n")
    assert (ids.to_pylist(), lengths.tolist()) == ([2, None], [1, 0, 1])


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.dictionary(pa.int16(), pa.uint8())],
    ids=str,
)
def test_integers_become_int64(kind: pa.DataType) -> None:
    ids = plain_ids(
        pa.chunked_array([pa.array([1, None], kind), pa.array([3, 1], kind)]), file="f", name="n"
    )
    assert (ids.type, ids.to_pylist()) == (pa.int64(), [1, None, 3, 1])


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_strings_become_large_strings(kind: pa.DataType) -> None:
    ids = plain_ids(
        pa.chunked_array([pa.array(["b", None], kind), pa.array(["", "b"], kind)]),
        file="f",
        name="n",
    )
    assert (ids.type, ids.to_pylist()) == (pa.large_string(), ["b", None, "", "b"])


def test_booleans_become_0_and_1() -> None:
    assert plain_ids(pa.chunked_array([[True, None, False]]), file="f", name="n").to_pylist() == [
        1,
        None,
        0,
    ]


def test_an_id_above_int64_is_named() -> None:
    column = pa.chunked_array([pa.array([1, 2**63], pa.uint64())])
    with pytest.raises(
        ValueError,
        match=rf"f\.parquet: column 'n' should fit into signed 64-bit integers: .*{2**63}.*store its ids as strings",
    ):
        plain_ids(column, file="f.parquet", name="n")


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0, 1, 1], pa.int8()), ([False, True, True], pa.bool_()), ([0.0, 1.0, 1.0], pa.float32())],
    ids=str,
)
def test_labels_of_any_type(values: list[float], kind: pa.DataType) -> None:
    assert binary(pa.chunked_array([pa.array(values, kind)]), file="f", name="n").tolist() == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, None, None], r"received null in row 1 of its row group \(2 nulls\)"),
        ([1, 2], "received 2 in row 1 of its row group"),
        ([-1, 0], "received -1 in row 0"),
        ([1, 0.5], "received 0.5 in row 1"),
        ([math.nan], "received nan in row 0"),
        ([2**53 + 1], r"received 9\.0072e\+15 in row 0"),
    ],
)
def test_a_bad_label_is_named(values: list[float | None], message: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"f\.parquet: column 'clicked' should be 0 or 1, {message}.*; drop such rows or repair them",
    ):
        binary(pa.chunked_array([pa.array(values)]), file="f.parquet", name="clicked")


@given(st.lists(st.none() | st.floats(-1e300, 1e300), max_size=5))
def test_numbers_keep_their_nulls_as_nan(values: list[float | None]) -> None:
    found = numbers(
        pa.chunked_array([pa.array(values, pa.float64())]), Transform.NONE, file="f", name="n"
    )
    assert [None if math.isnan(x) else x for x in found.tolist()] == values


@given(st.lists(st.none() | st.integers(0, 2**63 - 1), max_size=5))
def test_log_of_numbers(values: list[int | None]) -> None:
    found = numbers(
        pa.chunked_array([pa.array(values, pa.int64())]), Transform.LOG, file="f", name="n"
    )
    assert found.tolist() == pytest.approx(
        [math.nan if x is None else math.log1p(x) for x in values], nan_ok=True
    )


@pytest.mark.parametrize(
    ("values", "transform", "message"),
    [
        (
            [0.0, math.nan],
            "none",
            "should be finite, received nan in row 1 .*write null where a value is unknown",
        ),
        ([None, math.inf], "none", "should be finite, received inf in row 1"),
        ([-math.inf], "log", "should be finite, received -inf in row 0"),
        (
            [1.0, -2.5],
            "log",
            r"should be >= 0 for transform 'log', received -2\.5 in row 1 of its row group; use transform 'none' or null",
        ),
    ],
)
def test_a_bad_number_is_named(values: list[float | None], transform: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"f\.parquet: column 'price' {message}"):
        numbers(
            pa.chunked_array([pa.array(values, pa.float64())]),
            Transform(transform),
            file="f.parquet",
            name="price",
        )

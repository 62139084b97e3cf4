"""Limits of histories: the newest ids of each list, as training and serving both show them."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mail_torchrec.data.cold_start import ColdStartSettings, hidden_users
from mail_torchrec.data.history import HistoryLimits
from mail_torchrec.data.parquet.arrow import list_lengths
from mail_torchrec.data.schema.schema import Schema
from tests.support import plain

MAX_LENGTH = plain.MAX_LENGTHS["history"]


def limits_of(behaviours: list[int]) -> HistoryLimits:
    """Limits of rows that show at most so many behaviours."""
    max_behaviours_R = np.array(behaviours, np.int64)
    return HistoryLimits(plain.schema(), max_behaviours_R >= 0, max_behaviours_R)


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
def test_shown_ids_equal_plain_python(
    rows: list[list[int | None] | None], limits: list[int], kind: pa.DataType, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    column = pa.chunked_array([pa.array(part, kind) for part in (rows[:cut], rows[cut:])])
    table = pa.table({"history": column})
    ids, lengths = limits_of(limits[: len(rows)]).shown_ids(table, "history", "f")
    most = [min(limit, MAX_LENGTH) for limit in limits]
    expected = [(row or [])[max(len(row or []) - most[i], 0) :] for i, row in enumerate(rows)]
    assert ids.to_pylist() == [value for row in expected for value in row]
    assert lengths.tolist() == [len(row) for row in expected]
    assert list_lengths(column).tolist() == [len(row or []) for row in rows]


def test_lists_of_one_size_may_be_null() -> None:
    column = pa.chunked_array([pa.array([[1, 2], None, [3, None]], pa.list_(pa.int32(), 2))])
    table = pa.table({"history": column})
    ids, lengths = limits_of([1, 1, 1]).shown_ids(table, "history", "f")
    assert (ids.to_pylist(), lengths.tolist()) == ([2, None], [1, 0, 1])


def test_the_example_of_the_docstring() -> None:
    """The first of two users is hidden and keeps one behaviour; both show at most two."""
    tree = plain.TREE["columns"]
    columns = {name: tree[name] | {"max_length": 2} for name in plain.BEHAVIOURS}
    schema = Schema.model_validate(plain.TREE | {"columns": tree | columns})
    cold_start = ColdStartSettings(hide_share=0.5, keep=1)
    is_hidden = hidden_users(pa.array(range(20)), cold_start).tolist()
    keys = pa.array([is_hidden.index(True), is_hidden.index(False)])
    limits = HistoryLimits.simulated(schema, keys, cold_start)
    assert limits.is_hidden_R.tolist() == limits.is_limited_R.tolist() == [True, False]
    table = pa.table({"history": [[5, 6, 7], [5, 6, 7]], "actions": [[1, 2, 3], [1, 2, 3]]})
    ids, lengths = limits.shown_ids(table, "history", "f")
    assert (ids.to_pylist(), lengths.tolist()) == ([7, 6, 7], [1, 2])
    assert limits.is_cut(table, "history").tolist() == [False, True]
    assert [limits.shown_behaviours([5, 6, 7], row) for row in (0, 1)] == [[7], [5, 6, 7]]
    assert limits.num_behaviours(table).tolist() == [1, 3]
    assert limits.num_behaviours(table, hidden=True).tolist() == [3, 3]


@given(st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=6))
def test_serving_shows_what_training_shows_of_users_who_are_not_hidden(
    rows: list[list[int]],
) -> None:
    table = pa.table({"history": pa.array(rows, pa.list_(pa.int64()))})
    trained = HistoryLimits.simulated(
        plain.schema(), pa.array(range(len(rows))), ColdStartSettings()
    )
    served = HistoryLimits.served(plain.schema(), len(rows))
    found = [
        [part.tolist() if isinstance(part, np.ndarray) else part.to_pylist() for part in parts]
        for limits in (trained, served)
        for parts in [limits.shown_ids(table, "history", "f")]
    ]
    assert found[0] == found[1]

"""Policy ``vocabulary``: unknown ids 0, nulls 1, frequent values evenly among the others."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail_torchrec.data.ids import vocabulary as vocabularies
from mail_torchrec.data.ids.counts import IdCounts, order_by_frequency
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.ids.policy import MISSING_ROW, UNKNOWN_ROW
from mail_torchrec.data.ids.settings import IdSettings
from mail_torchrec.data.ids.vocabulary import Vocabulary, VocabularyPolicy
from tests.support.plain import spread_evenly

INTEGERS = st.lists(st.none() | st.integers(-5, 5) | st.integers(-(2**63), 2**63 - 1), max_size=20)
COUNTS = [1, 2, 3, 65_534, 65_535, 65_536, 65_537, 2**40]
TEXTS = st.lists(st.none() | st.text(max_size=3), max_size=20)


def vocabulary(values: list[int] | list[str], kind: pa.DataType) -> Vocabulary:
    return Vocabulary(pa.array(values, kind), np.arange(len(values))[::-1])


def expected(values: list[int] | list[str], ids: list[int | None] | list[str | None]) -> list[int]:
    return [1 if x is None else 2 + values.index(x) if x in values else 0 for x in ids]  # type: ignore[arg-type]


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True)
    | st.lists(st.integers(-9, 9), unique=True),
    INTEGERS,
)
def test_integers(values: list[int], ids: list[int | None]) -> None:
    """Both the array and the bisection, ends of int64 included."""
    ids += [*values, -(2**63), 2**63 - 1]
    assert vocabulary(values, pa.int64()).encode(pa.array(ids, pa.int64())).tolist() == expected(
        values, ids
    )


@given(st.lists(st.text(max_size=3), unique=True), TEXTS)
def test_strings(values: list[str], ids: list[str | None]) -> None:
    ids += values
    assert vocabulary(values, pa.large_string()).encode(
        pa.array(ids, pa.large_string())
    ).tolist() == expected(values, ids)


MANY = [f"v{i}" for i in range(1500)]


def test_a_few_strings_are_looked_up_in_many_by_their_hash() -> None:
    ids = ["v3", None, "x", "", "v1499", "v0", "v3"]
    assert vocabulary(MANY, pa.large_string()).encode(
        pa.array(ids, pa.large_string())
    ).tolist() == expected(MANY, ids)


def test_strings_that_share_a_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def colliding(values: pa.Array, salt: str) -> Any:
        """Two values under one salt; a value and what is none under each."""
        return hash64(
            pa.array(
                [
                    "v7" if text == "x" or (salt == "0" and text == "v8") else text
                    for text in values.to_pylist()
                ]
            ),
            salt,
        )

    monkeypatch.setattr(vocabularies, "hash64", colliding)
    ids = ["v8", "x", "v7"]
    assert vocabulary(MANY, pa.large_string()).encode(
        pa.array(ids, pa.large_string())
    ).tolist() == expected(MANY, ids)


def test_a_vocabulary_without_values_knows_no_id_of_any_type() -> None:
    for ids in (pa.array(["a", None], pa.large_string()), pa.array([1, None])):
        assert vocabulary([], pa.int64()).encode(ids).tolist() == [UNKNOWN_ROW, MISSING_ROW]


def test_integers_where_training_had_strings_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=(
            "ids should be large_string, as in the training data, received int64; cast the column"
        ),
    ):
        vocabulary(["a"], pa.large_string()).encode(pa.array([1]))


@given(st.lists(INTEGERS, min_size=1, max_size=4), st.integers(1, 3), st.none() | st.integers(3, 8))
def test_a_vocabulary_holds_the_most_frequent_values_in_rows_far_apart(
    parts: list[list[int | None]], min_count: int, max_rows: int | None
) -> None:
    counts = IdCounts()
    for part in parts:
        counts.add(pa.array(part, pa.int64()))
    found = VocabularyPolicy("item", IdSettings(min_count=min_count, rows=max_rows)).fit(counts)
    counted = Counter(x for part in parts for x in part if x is not None)
    order = sorted((-n, value) for value, n in counted.items() if n >= min_count)[
        : None if max_rows is None else max_rows - 2
    ]
    assert [
        (-n, value)
        for n, value in zip(found.counts_V.tolist(), found.values.to_pylist(), strict=True)
    ] == spread_evenly(order)
    assert found.num_rows == len(order) + 2


@given(
    st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.sampled_from(COUNTS), max_size=40)
    | st.dictionaries(st.text(max_size=3), st.sampled_from(COUNTS), max_size=40)
)
def test_ids_are_ordered_by_counts_of_any_size(counted: dict[Any, int]) -> None:
    kind = pa.large_string() if any(isinstance(x, str) for x in counted) else pa.int64()
    found = order_by_frequency(pa.array(list(counted), kind), np.array([*counted.values()], int))
    expected = sorted(counted, key=lambda value: (-counted[value], value))
    assert [list(counted)[place] for place in found] == expected


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
def test_ranks_that_hold_consecutive_rows_serve_equally_many_lookups(ranks: int) -> None:
    counts = (1e9 / np.arange(1, 10_001)).astype(np.int64)  # by Zipf's law
    found = VocabularyPolicy("item", IdSettings()).fit(
        IdCounts(pa.table({"value": np.arange(len(counts)), "count": counts}))
    )
    busiest = max(part.sum() for part in np.array_split(found.counts_V, ranks)) / counts.sum()
    assert busiest < 1 / ranks + counts[0] / counts.sum()  # one of them has the most frequent value

"""Admission and eviction of managed ids, against a plain reference over Python's dicts."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail_torchrec.data.ids.counts import IdCounts
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.ids.managed import ManagedIds, ManagedPolicy
from mail_torchrec.data.ids.settings import IdSettings

DAY = date(2024, 5, 1)
FALLBACK = 2
OWN = 2 + FALLBACK
"""First row that an id can own."""


@dataclass
class Plain:
    """Rows of a managed table, one step after another."""

    settings: IdSettings
    owner: dict[int, Any] = field(default_factory=dict)
    count: dict[Any, float] = field(default_factory=dict)
    last_seen: dict[Any, date] = field(default_factory=dict)
    generation: Counter[int] = field(default_factory=Counter)
    day: date | None = None
    new: dict[int, int] = field(default_factory=dict)

    def update(self, ids: list[Any], day: date) -> dict[str, int]:
        """Trains on the ids of a day; returns what became of them."""
        seen = Counter(ids)
        rows = {value: row for row, value in self.owner.items()}
        for value in rows:
            if self.day is not None and self.settings.half_life_days is not None:
                days = max((day - self.day).days, 0)
                self.count[value] *= 2 ** (-days / self.settings.half_life_days)
            if value in seen:
                self.count[value] += seen[value]
                self.last_seen[value] = max(self.last_seen[value], day)
        expired = [
            value
            for value in rows
            if value not in seen
            and self.settings.ttl_days is not None
            and (day - self.last_seen[value]).days > self.settings.ttl_days
        ]
        for value in expired:
            self._free(rows[value])
        free = [row for row in range(OWN, self.settings.rows) if row not in self.owner]
        new = [v for v, n in seen.items() if v not in rows and n >= self.settings.admit]
        new.sort(key=lambda value: (-seen[value], self._order(value)))
        victims = [value for value in self.owner.values() if value not in seen]
        if self.settings.evict == "ttl":
            victims = []
        # The last in the order of values goes first.
        victims.sort(key=self._order, reverse=True)
        by_day = [lambda v: self.last_seen[v], lambda v: self.count[v]]
        for key in by_day[::-1] if self.settings.evict == "lru" else by_day:
            victims.sort(key=key)
        admitted = new[: len(free) + len(victims)]
        evicted = victims[: max(len(admitted) - len(free), 0)]
        in_free = admitted[: len(free)]
        places = sorted(range(len(in_free)), key=lambda k: k * ((5**0.5 - 1) / 2) % 1)
        self.new = {}
        for place, k in enumerate(places):
            self._own(free[place * len(free) // len(in_free)], in_free[k], seen, day)
        for value, victim in zip(admitted[len(free) :], evicted, strict=True):
            self._free(rows[victim])
            self._own(rows[victim], value, seen, day)
        self.day = day if self.day is None else max(self.day, day)
        return {
            "admitted": len(admitted),
            "evicted": len(evicted),
            "expired": len(expired),
            "rare": sum(v not in rows and n < self.settings.admit for v, n in seen.items()),
            "refused": len(new) - len(admitted),
        }

    def _own(self, row: int, value: Any, seen: Counter[Any], day: date) -> None:
        self.owner[row], self.count[value], self.last_seen[value] = value, seen[value], day
        self.new[row] = self.generation[row]

    def _free(self, row: int) -> None:
        del self.count[self.owner[row]], self.last_seen[self.owner.pop(row)]
        self.generation[row] += 1

    @staticmethod
    def _order(value: Any) -> Any:
        return value.encode() if isinstance(value, str) else value


def counts_of(ids: list[Any], parts: int = 1) -> IdCounts:
    counts = IdCounts()
    kind = pa.large_string() if ids and isinstance(ids[0], str) else pa.int64()
    for part in range(parts):
        counts.add(pa.array(ids[part::parts], kind))
    return counts


def check_equal(found: ManagedIds, expected: Plain) -> None:
    owned = found.owned
    assert dict(zip(found.rows_V.tolist(), found.values.to_pylist(), strict=True)) == expected.owner
    assert found.rows_V.tolist() == sorted(expected.owner)
    values = found.values.to_pylist()
    np.testing.assert_allclose(found.counts_V, [expected.count[v] for v in values], rtol=1e-12)
    days = [(expected.last_seen[v] - date(1970, 1, 1)).days for v in values]
    assert owned.days_V.tolist() == days
    rows = range(OWN, found.num_rows)
    assert owned.generations_R.tolist() == [expected.generation[row] for row in rows]


SOME = st.lists(st.integers(-(2**63), -(2**63) + 3) | st.integers(0, 9), max_size=12)
FEW = st.sets(st.integers(0, 9), max_size=6).map(list)  # of equal counts
TEXTS = st.lists(st.sampled_from(["", "a", "b", "é", "日", "z", "zz", "A", "\U0001f600", "￿"]))
DAYS = [
    st.lists(st.tuples(ids, st.integers(-1, 5)), min_size=1, max_size=6)
    for ids in (FEW, SOME, TEXTS)
]


@settings(max_examples=300)
@given(
    days=st.one_of(DAYS),
    rows=st.integers(OWN + 1, OWN + 6),
    admit=st.integers(1, 3),
    evict=st.sampled_from(["lfu", "lru", "ttl"]),
    ttl=st.none() | st.integers(1, 6),
    half_life=st.none() | st.sampled_from([1.0, 2.5]),
    parts=st.integers(1, 3),
)
def test_each_update_is_that_of_a_plain_reference(
    days: list[tuple[list[Any], int]],
    rows: int,
    admit: int,
    evict: str,
    ttl: int | None,
    half_life: float | None,
    parts: int,
) -> None:
    """Rows, owners, counts, days, generations, new owners and what was told, day after day."""
    of_table = IdSettings.model_validate(
        {
            "ids": "managed",
            "rows": rows,
            "fallback_rows": FALLBACK,
            "admit": admit,
            "evict": evict,
            "ttl_days": ttl or (4 if evict == "ttl" else None),
            "half_life_days": half_life,
        }
    )
    policy, plain, day = ManagedPolicy("item", of_table), Plain(of_table), DAY
    policy.check_settings()
    encoder: ManagedIds | None = None
    for ids, step in days:
        day += timedelta(days=step)
        told = plain.update(ids, day)
        counts = counts_of(ids, parts)
        parent = encoder
        encoder = policy.fit(counts, day) if parent is None else policy.update(parent, counts, day)
        check_equal(encoder, plain)
        update = encoder.last_update.model_dump()
        assert update.pop("day") == plain.day
        assert update == told
        if parent is not None:
            owners = encoder.new_owners(parent)
            assert dict(zip(*map(np.ndarray.tolist, owners), strict=True)) == plain.new
        known = {value: row for row, value in plain.owner.items()}
        probes = [None, *ids[:5], "x" if ids and isinstance(ids[0], str) else 77]
        kind = pa.large_string() if isinstance(probes[-1], str) else pa.int64()
        if encoder.values.type in (kind, pa.null()) or not len(encoder.values):
            found = encoder.encode(pa.array(probes, kind)).tolist()
            hashes = hash64(pa.array(probes, kind), "item").tolist()
            assert found == [
                1 if value is None else known.get(value, 2 + word % FALLBACK)
                for value, word in zip(probes, hashes, strict=True)
            ]


def managed(**given: Any) -> ManagedPolicy:
    tree = {"ids": "managed", "rows": OWN + 4, "fallback_rows": FALLBACK} | given
    return ManagedPolicy("item", IdSettings.model_validate(tree))


def test_ids_that_a_table_has_no_rows_for_are_counted_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = managed(admit=2).fit(counts_of([1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]), DAY)
    assert (found.last_update.admitted, found.last_update.refused) == (4, 2)
    assert found.last_update.rare == 1
    assert found.values.to_pylist() == [1, 3, 2, 4]  # the two last by value have none
    assert "2 ids that occur often enough were not admitted" in caplog.text
    again = managed(admit=2).update(found, counts_of([1, 2, 3, 4, 5, 5]), DAY)
    assert set(again.values.to_pylist()) == {1, 2, 3, 4}, "ids of the new files keep their rows"
    assert again.last_update.refused == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": OWN + 3}, "rows and fallback_rows should stay 8 and 2, as in the run .* 7 and 2"),
        ({"fallback_rows": 1}, "should stay 8 and 2, .* received 8 and 1"),
    ],
)
def test_a_table_of_another_size_is_refused(changed: dict[str, Any], message: str) -> None:
    parent = managed().fit(counts_of([1]), DAY)
    with pytest.raises(ValueError, match=message):
        managed(**changed).update(parent, counts_of([1]), DAY)


def test_ids_of_another_type_are_refused() -> None:
    parent = managed().fit(counts_of([1]), DAY)
    with pytest.raises(ValueError, match=r"should be int64, as in the run .* large_string; cast"):
        managed().update(parent, counts_of(["1"]), DAY)


@pytest.mark.parametrize("changed", [{"ttl_days": 2}, {"evict": "lru"}])
def test_what_counts_days_needs_a_day(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs the day of the training data, .*; set data\.day"):
        managed(**changed).fit(counts_of([1]), None)


def test_counts_without_a_day_do_not_decay_and_this_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parent = managed().fit(counts_of([1, 1]), DAY)
    assert managed().update(parent, counts_of([1]), None).counts_V.tolist() == [3]
    assert "not known, that of the run that is continued 2024-05-01: counts do not" in caplog.text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": None}, "needs 'rows'"),
        ({"rows": 4}, "rows should be at least 5, with 2 fallback_rows .* received 4"),
        ({"min_count": 2}, "write admit"),
        ({"evict": "ttl"}, "needs 'ttl_days'"),
    ],
)
def test_settings_that_contradict_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        managed(**changed).check_settings()


@pytest.mark.parametrize("ids", ["vocabulary", "hash", "buckets"])
def test_settings_of_managed_ids_are_refused_with_others(ids: str) -> None:
    with pytest.raises(ValueError, match=f"admit should stand with ids 'managed', received.*{ids}"):
        IdSettings(ids=ids, rows=9, admit=2)

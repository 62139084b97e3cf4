"""File of a managed table: what is saved is loaded, and a damaged or hostile one is refused."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data.ids.counts import IdCounts
from mail_torchrec.data.ids.managed import ManagedIds, ManagedPolicy
from mail_torchrec.data.ids.settings import IdSettings

POLICY = ManagedPolicy("t", IdSettings(ids="managed", rows=12, fallback_rows=2, ttl_days=2))


def counted(ids: list[Any]) -> IdCounts:
    counts = IdCounts()
    counts.add(pa.array(ids, pa.large_string() if any(isinstance(x, str) for x in ids) else None))
    return counts


def two_days(first: list[Any], second: list[Any]) -> ManagedIds:
    parent = POLICY.fit(counted(first), date(2024, 5, 1))
    return POLICY.update(parent, counted(second), date(2024, 5, 5))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([7, 7, 8, -(2**63)], [9, 7]),
        (["é", "", "b"], ["z"]),
        ([True, False], [True]),
        ([1, 2], []),  # all expired: rows without owners alone
        ([None], [None]),
    ],
)
def test_what_is_saved_is_loaded(first: list[Any], second: list[Any], tmp_path: Path) -> None:
    saved = two_days(first, second)
    saved.save(tmp_path, "t")
    loaded = POLICY.load(tmp_path)
    assert loaded.last_update == saved.last_update
    assert loaded.values.to_pylist() == saved.values.to_pylist()
    for name in ("rows_V", "counts_V", "days_V", "generations_R"):
        assert np.array_equal(getattr(loaded.owned, name), getattr(saved.owned, name)), name
    loaded.save(tmp_path, "again")
    assert (tmp_path / "t.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()


def test_the_file_lists_each_row_that_has_or_had_an_owner(tmp_path: Path) -> None:
    found = two_days([7, 8], [9])
    found.save(tmp_path, "t")
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column_names == ["value", "row", "count", "last_seen", "generation"]
    rows = {row["row"]: row for row in table.to_pylist()}
    assert sorted(rows) == sorted({*map(int, found.rows_V), 4, 8}) and min(rows) >= 4
    [owner] = [row for row in rows.values() if row["value"] is not None]
    assert owner | {"row": 0} == {
        "value": 9,
        "row": 0,
        "count": 1.0,
        "last_seen": date(2024, 5, 5),
        "generation": owner["generation"],
    }
    assert sum(row["generation"] for row in rows.values()) == 2


def damaged(path: Path, **columns: Any) -> None:
    table = pq.read_table(path)
    for name, values in columns.items():
        kind = table.schema.field(name).type
        place = table.column_names.index(name)
        array = values if isinstance(values, pa.Array) else pa.array(values, kind)
        table = table.set_column(place, name, array)
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"row": [4, 4]}, "its rows do not rise from 4 to 11"),
        ({"row": [5, 4]}, "do not rise"),
        ({"row": [1, 5]}, "do not rise from 4"),
        ({"row": [4, 12]}, "do not rise from 4 to 11"),
        ({"row": [4, None]}, "it has nulls"),
        ({"value": [7, 7]}, "a value stands twice"),
        ({"value": pa.array([1.5, 2.5])}, "2 rows of .*double"),
        ({"count": [-1.0, 1.0]}, "negative or no number"),
        ({"count": [float("nan"), 1.0]}, "negative or no number"),
        ({"generation": [0, -1]}, "negative or no number"),
        ({"generation": pa.array([0, 1], pa.int8())}, "2 rows of .*int8"),
    ],
)
def test_a_damaged_file_is_refused(columns: Any, message: str, tmp_path: Path) -> None:
    POLICY.fit(counted([7, 8]), date(2024, 5, 1)).save(tmp_path, "t")
    damaged(tmp_path / "t.parquet", **columns)
    with pytest.raises(
        ValueError, match=f"t.parquet' should be the ids of .* damaged: .*{message}"
    ):
        POLICY.load(tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(FileNotFoundError):
        POLICY.load(tmp_path)
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="it is damaged"):
        POLICY.load(tmp_path)
    POLICY.fit(counted([7, 8]), date(2024, 5, 1)).save(tmp_path, "t")
    content = path.read_bytes()
    for stop in range(0, len(content), 97):
        path.write_bytes(content[:stop])
        with pytest.raises(ValueError, match="it is damaged"):
            POLICY.load(tmp_path)
    path.write_bytes(content)
    table = pq.read_table(path)
    for update in (b"", b"{}", b"[" * 9999, b'{"admitted": -1}'):
        pq.write_table(table.replace_schema_metadata({b"mail_torchrec.update": update}), path)
        with pytest.raises(ValueError, match="it is damaged"):
            POLICY.load(tmp_path)
    many = pa.table({name: table[name].take(pa.array([0] * 100)) for name in table.column_names})
    pq.write_table(many, path)
    with pytest.raises(ValueError, match=r"100 rows of .* for a table that has 8"):
        POLICY.load(tmp_path)

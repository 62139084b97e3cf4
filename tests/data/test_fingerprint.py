"""Fingerprints follow the values, not the place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data.fingerprint import FileFingerprint, differing_files, fingerprints
from mail_torchrec.data.parquet.files import parquet_files
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from tests.support.small_rows import SCHEMA, write_rows


def fingerprint(folder: Path) -> list[FileFingerprint]:
    return Source(str(folder), Schema.model_validate(SCHEMA)).fingerprints


def contents(found: list[FileFingerprint]) -> list[str]:
    return [one.content for one in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b")):
        write_rows(tmp_path / "rows" / f"{name}.parquet", 60, seed=seed)
    return tmp_path / "rows"


def test_copies_elsewhere_have_one_fingerprint(folder: Path, tmp_path: Path) -> None:
    first = fingerprint(folder)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "a.parquet").rename(tmp_path / "copy" / "1.parquet")
    (tmp_path / "copy" / "b.parquet").rename(tmp_path / "copy" / "2.parquet")
    empty = pq.read_table(folder / "a.parquet").slice(0, 0)
    pq.write_table(empty, tmp_path / "copy" / "0.parquet")
    second = fingerprint(tmp_path / "copy")
    assert contents(second) == contents(first)
    assert [one.name for one in second] == ["1.parquet", "2.parquet"]
    assert differing_files(second, first) == []


def replaced(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def swapped(rows: pa.Table, name: str) -> pa.Table:
    """Exchanges the first two values of the second row group that differ."""
    values = rows[name].to_pylist()
    other = next(i for i in range(51, len(values)) if values[i] != values[50])
    values[50], values[other] = values[other], values[50]
    return replaced(rows, name, pa.array(values, rows[name].type))


CHANGES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a shifted number": lambda rows: replaced(rows, "item", pc.add(rows["item"], 1)),
    "longer lists": lambda rows: replaced(
        rows, "history", pa.array([[1, *row] for row in rows["history"].to_pylist()])
    ),
    "a null": lambda rows: replaced(
        rows, "hour", pa.array([None, *rows["hour"].to_pylist()[1:]], pa.int64())
    ),
    "another string": lambda rows: replaced(
        rows, "city", pc.replace_substring(rows["city"], "city1", "citya")
    ),
    "two labels exchanged": lambda rows: swapped(rows, "clicked"),
    "two users exchanged": lambda rows: swapped(rows, "user"),
    "two lists exchanged": lambda rows: swapped(rows, "history"),
    "two strings exchanged": lambda rows: swapped(rows, "city"),
    "one row less": lambda rows: rows.slice(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_values_have_another_one(folder: Path, change: str) -> None:
    first = fingerprint(folder)
    table = CHANGES[change](pq.read_table(folder / "b.parquet"))
    pq.write_table(table, folder / "b.parquet", row_group_size=50)
    kind = "other row groups" if change == "one row less" else "the same sizes and other values"
    assert differing_files(fingerprint(folder), first) == [f"'b.parquet' has {kind}"]


def test_columns_that_are_not_read_do_not_count(folder: Path) -> None:
    first = fingerprint(folder)
    for path in folder.iterdir():
        table = pq.read_table(path)
        extra = table.append_column("history.extra", pa.array(range(len(table))))
        pq.write_table(extra.append_column("extra", table["item"]), path, row_group_size=50)
    assert fingerprint(folder) == first


def test_labels_are_covered_whole_in_large_row_groups_and_large_columns_by_their_sample(
    tmp_path: Path,
) -> None:
    """A million labels are 125 KB. Of 8 MB of random numbers each sixteenth is looked at."""
    rows = np.random.default_rng(1)
    table = pa.table({"label": rows.integers(0, 2, 10**6, np.int8), "x": rows.random(10**6)})

    def content(table: pa.Table) -> str:
        pq.write_table(table, tmp_path / "a.parquet", compression="none")
        [found] = fingerprints(parquet_files(str(tmp_path / "a.parquet"), ""), ["label", "x"])
        return found.content

    first = content(table)
    labels = table["label"].to_numpy().copy()
    one, other = (np.flatnonzero(labels == value)[345_678] for value in (0, 1))
    labels[one], labels[other] = 1, 0
    assert content(replaced(table, "label", pa.array(labels))) != first
    assert content(replaced(table, "x", table["x"].take(rows.permutation(10**6)))) != first
    assert content(table) == first


def test_files_that_came_or_went_are_named(folder: Path) -> None:
    first = fingerprint(folder)
    write_rows(folder / "c.parquet", 60, seed=9)
    second = fingerprint(folder)
    assert differing_files(second, first) == [
        "there are 3 files with rows, 2 then",
        "'c.parquet' is new or changed",
    ]
    assert differing_files(first, second) == ["there are 2 files with rows, 3 then"]

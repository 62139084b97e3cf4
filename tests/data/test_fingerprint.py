"""Fingerprints follow the values, not the place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from tests.support.small_rows import SCHEMA, write_rows


def fingerprint(folder: Path) -> str:
    return Source(str(folder), Schema.model_validate(SCHEMA)).fingerprint


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
    assert fingerprint(tmp_path / "copy") == first


def replaced(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


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
    "one row less": lambda rows: rows.slice(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_values_have_another_one(folder: Path, change: str) -> None:
    first = fingerprint(folder)
    table = CHANGES[change](pq.read_table(folder / "b.parquet"))
    pq.write_table(table, folder / "b.parquet", row_group_size=50)
    second = fingerprint(folder)
    assert second != first
    same_sizes = first.partition("-")[0] == second.partition("-")[0]
    assert same_sizes == (change != "one row less")


def test_columns_that_are_not_read_do_not_count(folder: Path) -> None:
    first = fingerprint(folder)
    for path in folder.iterdir():
        table = pq.read_table(path)
        extra = table.append_column("history.extra", pa.array(range(len(table))))
        pq.write_table(extra.append_column("extra", table["item"]), path, row_group_size=50)
    assert fingerprint(folder) == first

"""Folders whose log decides which files count."""

import json
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import deltalake
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.abtest.exposures import LogColumns, read_exposures
from mail_torchrec.data.parquet.files import parquet_files
from mail_torchrec.data.parquet.logical_types import LogicalType
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.vectors.vector_files import read_ids, read_tables
from tests.support.plain import some_rows

ROWS = pa.table({"hour": [1, 1, 2], "city": ["a b", "c/d%", None], "x": [1, 2, 3]})


def rows_of(path: str, columns: list[str]) -> list[dict[str, object]]:
    return [row for file in parquet_files(path, "") for row in file.read(columns).to_pylist()]


def in_memory(folder: Path) -> str:
    """Copies a folder to a file system that is not the local one."""
    root = f"/{uuid.uuid4()}"
    for file in folder.rglob("*"):
        if file.is_file():
            target = f"{root}/{file.relative_to(folder)}"
            fsspec.filesystem("memory").pipe(target, file.read_bytes())
    return f"fsspec+memory:/{root}"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A Delta table with superseded files, a checkpoint, partitions and a column added later."""
    path = tmp_path / "table"
    deltalake.write_deltalake(path, ROWS, partition_by=["hour", "city"])
    deltalake.DeltaTable(path).delete("x = 1")
    deltalake.DeltaTable(path).create_checkpoint()
    added = pa.table({"hour": [7], "city": ["é"], "x": [4], "new": [5]})
    deltalake.write_deltalake(path, added, mode="append", schema_mode="merge")
    return path


@pytest.mark.parametrize("place", [str, in_memory, lambda path: f"file://{path}"])
def test_a_delta_table_is_read_by_its_log(table: Path, place: Callable[[Path], str]) -> None:
    assert len(list(table.rglob("*/*.parquet"))) > 3, "the table should have a superseded file"
    found = rows_of(place(table), ["x", "city", "hour", "new"])
    assert sorted(found, key=lambda row: row["x"]) == [
        {"x": 2, "city": "c/d%", "hour": 1, "new": None},
        {"x": 3, "city": None, "hour": 2, "new": None},
        {"x": 4, "city": "é", "hour": 7, "new": 5},
    ]


def test_an_overwritten_delta_table_counts_once_on_every_surface(
    schema: Schema, tmp_path: Path
) -> None:
    rows = pa.Table.from_pylist(some_rows(4))
    for _ in range(2):
        deltalake.write_deltalake(tmp_path / "rows", rows, mode="overwrite")
    path = str(tmp_path / "rows")
    assert Source(path, schema).num_rows == 4
    assert sum(len(batch) for _, batch in read_tables(path, ["user"], 10)) == 4
    for ids in ([1, 2], [3]):
        items = pa.table({"item": ids})
        deltalake.write_deltalake(tmp_path / "items", items, mode="overwrite")
    assert read_ids(str(tmp_path / "items"), "item", LogicalType.INTEGER).to_pylist() == [3]
    log = pa.table({"user": [1, 2], "version": ["a", "b"], "click": [0, 1]})
    for _ in range(2):
        deltalake.write_deltalake(tmp_path / "log", log, mode="overwrite")
    exposures = read_exposures([str(tmp_path / "log")], LogColumns(version="version"))
    assert exposures.impressions_L.sum() == 2


def change_log(table: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    log = table / "_delta_log" / f"{0:020}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        change(action)
    log.write_text("".join(json.dumps(action) + "\n" for action in actions))


def delete_row(action: dict[str, dict[str, object]]) -> None:
    if "add" in action:
        vector = {"storageType": "u", "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^", "offset": 4}
        action["add"]["deletionVector"] = vector | {"sizeInBytes": 40, "cardinality": 1}


def move_file(action: dict[str, dict[str, object]]) -> None:
    if "add" in action:
        action["add"]["path"] = "s3://k:hidden@other/x.parquet"


def need_future(action: dict[str, dict[str, object]]) -> None:
    if "protocol" in action:
        action["protocol"] = {
            "minReaderVersion": 3,
            "minWriterVersion": 7,
            "readerFeatures": ["timeTravelToTheFuture"],
            "writerFeatures": ["timeTravelToTheFuture"],
        }


@pytest.mark.parametrize(
    ("options", "change", "reason"),
    [
        ({"delta.enableDeletionVectors": "true"}, delete_row, "deletion vectors hide rows"),
        (
            {
                "delta.columnMapping.mode": "name",
                "delta.minReaderVersion": "2",
                "delta.minWriterVersion": "5",
            },
            lambda action: None,
            "column mapping",
        ),
        ({}, move_file, "its file s3://other/x.parquet lies elsewhere"),
        ({}, need_future, "timeTravelToTheFuture"),
        ({}, lambda action: action.clear(), "its log cannot be read"),
    ],
)
@pytest.mark.parametrize("place", [str, in_memory])
def test_a_delta_table_whose_files_are_not_its_rows_is_refused(
    options: dict[str, str],
    change: Callable[[dict[str, dict[str, object]]], None],
    reason: str,
    place: Callable[[Path], str],
    tmp_path: Path,
) -> None:
    deltalake.write_deltalake(tmp_path, ROWS, configuration=options)
    change_log(tmp_path, change)
    with pytest.raises(ValueError, match="is a Delta table that is not read") as error:
        parquet_files(place(tmp_path), "")
    assert reason in str(error.value) and "write a snapshot of it as plain" in str(error.value)


def test_deletion_vectors_that_are_allowed_and_not_there_are_no_fault(tmp_path: Path) -> None:
    options = {"delta.enableDeletionVectors": "true"}
    deltalake.write_deltalake(tmp_path, ROWS, configuration=options)
    assert len(rows_of(str(tmp_path), ["x"])) == 3


def test_without_the_library_the_extra_is_named(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(ValueError, match=r"pip install 'mail-torchrec\[delta\]'"):
        parquet_files(str(table), "")


LOGS = {
    "Delta": "_delta_log/00000000000000000000.json",
    "Iceberg": "metadata/00000-5f.metadata.json",
    "Hudi": ".hoodie/hoodie.properties",
    "Paimon": "snapshot/snapshot-1",
    "Spark streaming": "_spark_metadata/0",
}


def make_table(folder: Path, log: str) -> None:
    for name in ("data/day=1/a.parquet", log):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": [1]}), folder / "data/day=1/a.parquet")
    (folder / log).write_text("{}")


@pytest.mark.parametrize("place", [str, in_memory])
@pytest.mark.parametrize(("table_format", "log"), LOGS.items())
def test_a_table_is_named_at_above_and_below_the_path(
    table_format: str, log: str, place: Callable[[Path], str], tmp_path: Path
) -> None:
    make_table(tmp_path / "lake/table", log)
    root = place(tmp_path)
    cases = {"lake": "holds", "lake/table/data": "lies in", "lake/table/data/day=1/a.parquet": ""}
    for path, relation in cases.items():
        with pytest.raises(ValueError, match=f"a table of {table_format}, whose log") as error:
            parquet_files(f"{root}/{path}", "")
        message = str(error.value)
        assert message.startswith(f"'{root}/{path}' {relation}") and "lake/table'" in message
        assert "write a snapshot of it as plain Parquet files" in message
    with pytest.raises(ValueError, match=f"{table_format} table|is a table of {table_format}"):
        parquet_files(f"{root}/lake/table", "")


@pytest.mark.parametrize("folder", ["base_0000001", "delta_0000002_0000002_0000"])
def test_transactions_of_hive_are_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / folder / "a.parquet")
    with pytest.raises(ValueError, match=r"is a table of Hive \(transactional\)"):
        parquet_files(str(tmp_path), "")


def test_a_table_is_found_behind_a_link(tmp_path: Path) -> None:
    make_table(tmp_path / "table", LOGS["Iceberg"])
    (tmp_path / "day").symlink_to(tmp_path / "table/data/day=1")
    with pytest.raises(ValueError, match=f"'{tmp_path}/day' lies in '{tmp_path}/table'"):
        parquet_files(str(tmp_path / "day"), "")


def test_folders_that_only_sound_alike_are_no_tables(tmp_path: Path) -> None:
    for name in ("metadata/a.parquet", "snapshot/b.parquet", "delta_1/c.parquet"):
        (tmp_path / name).parent.mkdir()
        pq.write_table(pa.table({"x": [1]}), tmp_path / name)
    assert len(parquet_files(str(tmp_path), "")) == 3
    assert len(parquet_files(str(tmp_path / "metadata"), "")) == 1

"""Keys of predictions: file, row number and kept columns, as stored."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data.parquet.parquet_file import ParquetFile
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.predictions import row_keys
from mail_torchrec.predictions.row_keys import RowKeys
from tests.support import plain
from tests.support.plain import row, write


def source_of(folder: Path, parts: dict[str, pa.Array], row_group_size: int = 4) -> Source:
    """Files with a column ``key`` beside those of the plain schema."""
    for name, keys in parts.items():
        write(folder / name, [row(i) for i in range(len(keys))])
        table = pq.read_table(folder / name).append_column("key", keys)
        pq.write_table(table, folder / name, row_group_size=row_group_size)
    return Source(str(folder), plain.schema())


KEYS: dict[str, pa.Array] = {
    "int8": pa.array([3, None, 1], pa.int8()),
    "strings": pa.array(["ü", "", None]),
    "timestamps": pa.array([datetime(2024, 1, 2, tzinfo=UTC)] * 3, pa.timestamp("us", "UTC")),
    "decimals": pa.array([Decimal("1.25"), None, Decimal("-3.00")], pa.decimal128(9, 2)),
    "dictionaries": pa.array(["b", "a", "b"]).dictionary_encode(),
    "lists": pa.array([[1, 2], None, []], pa.list_(pa.int64())),
    "structs": pa.array([{"a": 1}, {"a": None}, None]),
    "nothing": pa.nulls(3),
}


@pytest.mark.parametrize("kind", KEYS)
def test_kept_columns_are_as_stored(tmp_path: Path, kind: str) -> None:
    source = source_of(tmp_path, {"a.parquet": KEYS[kind]})
    keys = RowKeys(source, {"kept": "key"}, [])
    found = keys.stream(0).take(3)
    assert found["kept"].type == KEYS[kind].type == keys.schema.field("kept").type
    assert found["kept"].to_pylist() == KEYS[kind].to_pylist()
    pq.write_table(found, tmp_path / "written.parquet")
    assert pq.read_table(tmp_path / "written.parquet")["kept"].to_pylist() == KEYS[kind].to_pylist()


@pytest.mark.parametrize("num_at_a_time", [1, 3, 11])
@pytest.mark.parametrize("first", [0, 5, 13])
@pytest.mark.parametrize("kept", [{}, {"key": "key"}], ids=["none", "one"])
def test_rows_are_numbered_in_their_files_whatever_is_taken_at_a_time(
    tmp_path: Path, kept: dict[str, str], first: int, num_at_a_time: int
) -> None:
    parts = {"b.parquet": pa.array(range(10, 21)), "a.parquet": pa.array(range(10))}
    source = source_of(tmp_path, parts)
    with patch.object(row_keys, "PIECE_ROWS", 3):
        stream = RowKeys(source, kept, []).stream(first)
        found: list[dict[str, Any]] = []
        for start in range(first, 21, num_at_a_time):
            found += stream.take(min(num_at_a_time, 21 - start)).to_pylist()
    assert [Path(row["filename"]).name for row in found] == [
        "a.parquet" if number < 10 else "b.parquet" for number in range(first, 21)
    ]
    assert [row["file_row_number"] for row in found] == [
        number if number < 10 else number - 10 for number in range(first, 21)
    ]
    if kept:
        assert [row["key"] for row in found] == list(range(first, 21))


def test_a_column_of_several_types_has_one_that_holds_all(tmp_path: Path) -> None:
    for name, parts, kind in (
        ("widths", [pa.array([1], pa.int8()), pa.array([2**40])], pa.int64()),
        ("words", [pa.array(["a"]).dictionary_encode(), pa.array(["b"])], pa.string()),
        ("nulls", [pa.nulls(1), pa.array([1.5])], pa.float64()),
    ):
        folder = tmp_path / name
        folder.mkdir()
        source = source_of(folder, dict(zip(["a.parquet", "b.parquet"], parts, strict=True)))
        found = RowKeys(source, {"key": "key"}, []).stream(0).take(2)["key"]
        assert found.type == kind
        assert found.to_pylist() == [part.to_pylist()[0] for part in parts]


def test_columns_that_cannot_be_kept_are_named(tmp_path: Path) -> None:
    parts = {"a.parquet": pa.array([1]), "b.parquet": pa.array(["x"])}
    source = source_of(tmp_path, parts)
    for kept, message in (
        ({"key": "key"}, r"column 'key' should have one type to be kept, received int64 in some"),
        ({"day": "day"}, r"a.parquet: column 'day' is missing .* or do not keep it"),
        ({"pctr": "key"}, r"column 'pctr' of their own.*group: passthrough, column: key"),
        ({"filename": "key"}, r"column 'filename' of their own"),
    ):
        with pytest.raises(ValueError, match=message):
            RowKeys(source, kept, ["pctr"])


def test_columns_of_folder_names_are_kept(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"day={day}").mkdir()
        write(tmp_path / f"day={day}/a.parquet", [row(0)])
    source = Source(str(tmp_path), plain.schema())
    found = RowKeys(source, {"day": "day"}, []).stream(0).take(2)
    assert found["day"].to_pylist() == [1, 2]


def test_no_more_than_one_piece_of_a_row_group_is_held(tmp_path: Path) -> None:
    source = source_of(tmp_path, {"a.parquet": pa.array(range(100))}, row_group_size=100)
    read: list[int] = []

    def batches(file: ParquetFile, *arguments: Any) -> Any:
        for batch in stored(file, *arguments):
            read.append(len(batch))
            yield batch

    stored = ParquetFile.batches
    with patch.object(row_keys, "PIECE_ROWS", 10), patch.object(ParquetFile, "batches", batches):
        stream = RowKeys(source, {"key": "key"}, []).stream(25)
        assert sum(read) == 30
        for number in range(25, 100):
            assert stream.take(1)["key"].to_pylist() == [number]
            assert sum(read) == 10 * (number // 10 + 1) and max(read) == 10


def test_passthrough_columns_have_no_other_setting_and_no_name_of_ours() -> None:
    for name, column, message in (
        ("day", {"kind": "list"}, r"schema.columns.day: .* takes no setting but 'column'"),
        ("day", {"table": "item"}, r"schema.columns.day: .* takes no setting but 'column'"),
        ("pctr", {}, r"schema.columns.pctr: predictions have a column 'pctr' of their own"),
    ):
        columns = plain.TREE["columns"] | {name: {"group": "passthrough", **column}}
        with pytest.raises(ValueError, match=message):
            Schema.model_validate(plain.TREE | {"columns": columns})
    columns = plain.TREE["columns"] | {"day": {"group": "passthrough", "column": "date"}}
    schema = Schema.model_validate(plain.TREE | {"columns": columns})
    assert "day" not in schema.read_columns and "item" in schema.read_columns

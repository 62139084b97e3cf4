"""Parquet files found, checked against the schema and read, and the errors of each step."""

import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from tests.support import plain
from tests.support.plain import TYPES, row, some_rows, write


def everything(source: Source) -> list[plain.Row]:
    return [row for group in source.row_groups for row in source.read(group).to_pylist()]


def retyped(column: str, kind: pa.DataType) -> pa.Schema:
    return TYPES.set(TYPES.get_field_index(column), pa.field(column, kind))


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path, schema: Schema) -> None:
    rows = some_rows(9)
    write(tmp_path / "b" / "1.parquet", rows[5:], [2, 0, 2])
    write(tmp_path / "a.parquet", rows[:5], [1, 4])
    (tmp_path / "_SUCCESS").write_text("")
    source = Source(str(tmp_path), schema)
    assert everything(source) == rows
    assert [group.num_rows for group in source.row_groups] == [1, 4, 2, 2]
    assert source.num_rows == 9
    assert source.file(source.row_groups[-1]) == f"{tmp_path}/b/1.parquet, row group 2"


def test_one_file_is_a_source(tmp_path: Path, schema: Schema) -> None:
    write(tmp_path / "a.parquet", some_rows(3))
    assert everything(Source(str(tmp_path / "a.parquet"), schema)) == some_rows(3)


def test_a_relative_path_is_a_source(
    tmp_path: Path, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "day" / "a.parquet", some_rows(3))
    monkeypatch.chdir(tmp_path)
    assert Source("../" + tmp_path.name + "/day", schema).num_rows == 3


def test_the_same_rows_come_through_a_file_uri_and_another_file_system(
    tmp_path: Path, schema: Schema
) -> None:
    rows = some_rows(7)
    write(tmp_path / "a.parquet", rows, [3, 4])
    assert everything(Source(f"file://{tmp_path}", schema)) == rows
    folder = f"/{uuid.uuid4()}"
    fsspec.filesystem("memory").pipe(f"{folder}/a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert everything(Source(f"fsspec+memory:/{folder}", schema)) == rows


def test_columns_that_the_schema_does_not_name_are_not_read(tmp_path: Path, schema: Schema) -> None:
    write(
        tmp_path / "a.parquet",
        [row(secret="s")],
        types=TYPES.append(pa.field("secret", pa.string())),
    )
    assert everything(Source(str(tmp_path), schema)) == [row()]


def test_no_such_place(schema: Schema, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"no data at '{tmp_path}/train': set data\.root"):
        Source(f"{tmp_path}/train", schema)


def test_no_such_file_system(schema: Schema) -> None:
    with pytest.raises(
        ValueError, match=r"'gopher://x/y' should be a path, or a URI that pyarrow\.fs opens"
    ):
        Source("gopher://x/y", schema)


def test_an_empty_folder(schema: Schema, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"'{tmp_path}' should hold Parquet files: it holds none"):
        Source(str(tmp_path), schema)


def test_files_without_rows(schema: Schema, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", [])
    with pytest.raises(
        ValueError, match=rf"'{tmp_path}' should hold rows: its 2 Parquet files hold none"
    ):
        Source(str(tmp_path), schema)


@pytest.mark.parametrize(
    "keep",
    [0, 3, 200, -1, -9],
    ids=["nothing", "three bytes", "200 bytes", "all but one byte", "all but nine"],
)
@pytest.mark.parametrize("name", ["a.parquet", "z.parquet"], ids=["first file", "last file"])
def test_a_truncated_file_is_named(schema: Schema, tmp_path: Path, keep: int, name: str) -> None:
    write(tmp_path / "m.parquet", some_rows(5))
    (tmp_path / name).write_bytes((tmp_path / "m.parquet").read_bytes()[:keep])
    with pytest.raises(
        ValueError,
        match=r"cannot be read as Parquet \(truncated, damaged, another format\?\).*write it anew",
    ) as caught:
        Source(str(tmp_path), schema)
    assert str(tmp_path / name) in str(caught.value)


def test_a_file_of_another_format_is_named(schema: Schema, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(5))
    (tmp_path / "notes.txt").write_text("not Parquet, and longer than a footer")
    with pytest.raises(ValueError, match=r"notes\.txt cannot be read as Parquet .*take it out"):
        Source(str(tmp_path), schema)


def test_a_file_damaged_behind_its_footer_is_named_when_it_is_read(
    schema: Schema, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    write(path, some_rows(50))
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).dictionary_page_offset
    damaged = bytearray(path.read_bytes())
    damaged[start : start + 40] = b"\xff" * 40
    path.write_bytes(damaged)
    source = Source(str(tmp_path), schema)
    with pytest.raises(ValueError, match=rf"{path} cannot be read as Parquet"):
        everything(source)


def test_a_file_that_vanishes_is_named_when_it_is_read(schema: Schema, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(5))
    source = Source(str(tmp_path), schema)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path}/a\.parquet cannot be read"):
        everything(source)


def test_a_missing_column_names_file_column_and_remedy(schema: Schema, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(2))
    path = tmp_path / "b.parquet"
    pq.write_table(pa.Table.from_pylist(some_rows(2), TYPES).drop_columns("hour"), path)
    with pytest.raises(
        ValueError,
        match=(
            rf"{path}: column 'hour' is missing \(the file has user, clicked.*add it, or "
            r"name another in schema\.columns\.hour\.column"
        ),
    ):
        Source(str(tmp_path), schema)


WRONG = {
    "clicked": (pa.array(["1"]), "a boolean or number of 0 and 1, found string"),
    "user": (pa.array([1.0]), "an integer, string or boolean .*, found double"),
    "age": (pa.array([1], pa.timestamp("us")), "an integer, string or boolean .*, found timestamp"),
    "city": (pa.array([{"a": 1}]), "an integer, string or boolean .*, found struct"),
    "income": (pa.array(["1"]), "a number, found string"),
    "history": (pa.array([1]), "a list of integers or strings, found int64"),
    "tags": (pa.array([[1.0]]), "a list of integers or strings, found list<element: double>"),
    "hour": (pa.array([[1]]), "an integer, string or boolean .*, found list"),
}


@pytest.mark.parametrize("column", WRONG)
def test_a_wrong_type_names_file_column_and_both_types(
    schema: Schema, tmp_path: Path, column: str
) -> None:
    values, message = WRONG[column]
    table = pa.Table.from_pylist(some_rows(1), TYPES)
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, column, values), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError,
        match=(
            rf"a\.parquet: column '{column}' should be {message}.*; cast it there or "
            r"change its kind"
        ),
    ):
        Source(str(tmp_path), schema)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("clicked", pa.bool_()),
        ("clicked", pa.float32()),
        ("user", pa.uint64()),
        ("city", pa.large_string()),
        ("city", pa.dictionary(pa.int32(), pa.string())),
        ("age", pa.bool_()),
        ("income", pa.int16()),
        ("history", pa.large_list(pa.int32())),
        ("history", pa.list_(pa.int64(), 3)),
        ("tags", pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    ],
    ids=str,
)
def test_types_that_fit(schema: Schema, tmp_path: Path, column: str, kind: pa.DataType) -> None:
    types = retyped(column, kind)
    pq.write_table(
        pa.table([pa.nulls(1, field.type) for field in types], types), tmp_path / "a.parquet"
    )
    assert Source(str(tmp_path), schema).num_rows == 1

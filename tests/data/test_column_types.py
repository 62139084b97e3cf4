"""One logical type of each column over all files, and what is read where files differ."""

import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data.column_types import (
    ColumnType,
    load_column_types,
    save_column_types,
)
from mail_torchrec.data.parquet.logical_types import LogicalType
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from tests.support.plain import TYPES, some_rows


def table_with(**columns: pa.Array) -> pa.Table:
    """Some rows of the small schema, with other columns in place of some."""
    [length] = {len(column) for column in columns.values()}
    table = pa.Table.from_pylist(some_rows(length), TYPES)
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def source_of(folder: Path, schema: Schema, *tables: pa.Table) -> Source:
    folder.mkdir(exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"{number}.parquet")
    return Source(str(folder), schema)


def values_of(source: Source, column: str) -> list[Any]:
    return [
        value for group in source.row_groups for value in source.read(group)[column].to_pylist()
    ]


ONE_TYPE = {
    "widths": ("user", [pa.array([1, 2]), pa.array([3], pa.int8()), pa.array([4], pa.uint32())]),
    "dictionaries": ("city", [pa.array(["a"]), pa.array(["b", None]).dictionary_encode()]),
    "views": ("city", [pa.array(["a"]), pa.array(["b"]).cast(pa.string_view())]),
    "bytes": ("city", [pa.array(["a"]), pa.array([b"b"])]),
    "decimals": ("item", [pa.array([1]), pa.array([decimal.Decimal(2)])]),
    "a null day": ("city", [pa.nulls(2), pa.array(["a"])]),
    "a null day after": ("city", [pa.array(["a"]), pa.nulls(2)]),
    "a null day as pandas stores it": ("city", [pa.nulls(1, pa.float64()), pa.array(["a"])]),
    "nulls of another id": ("city", [pa.nulls(1, pa.int64()), pa.array(["a"])]),
    "numbers": ("income", [pa.array([1]), pa.array([0.5]), pa.nulls(1)]),
}


@pytest.mark.parametrize("case", ONE_TYPE)
def test_containers_and_nulls_do_not_change_a_columns_type(
    case: str, schema: Schema, tmp_path: Path
) -> None:
    column, arrays = ONE_TYPE[case]
    source = source_of(tmp_path, schema, *(table_with(**{column: array}) for array in arrays))
    expected = [value for array in arrays for value in array.to_pylist()]
    assert values_of(source, column) == [
        value.decode() if isinstance(value, bytes) else value for value in expected
    ]


@pytest.mark.parametrize(
    "empty",
    [
        pa.array([[], []], pa.list_(pa.null())),
        pa.array([[], None], pa.list_(pa.float64())),
        pa.nulls(2),
        pa.array([[], []], pa.list_view(pa.int64())),
    ],
    ids=lambda array: str(array.type),
)
def test_lists_without_values_are_of_any_type(
    empty: pa.Array, schema: Schema, tmp_path: Path
) -> None:
    source = source_of(
        tmp_path, schema, table_with(tags=empty), table_with(tags=pa.array([["x", None]]))
    )
    assert values_of(source, "tags") == [[], [], ["x", None]]


def test_a_file_without_rows_has_no_say(schema: Schema, tmp_path: Path) -> None:
    empty = pa.table({name: pa.array([], pa.float64()) for name in TYPES.names})
    source = source_of(tmp_path, schema, empty, table_with(user=pa.array([7])), pa.table({"x": []}))
    assert values_of(source, "user") == [7]


_TEXT = "a number and its text are different ids"
TWO_TYPES = {
    "text": (pa.array([1]), pa.array(["1"]), "string", _TEXT),
    "a view of text": (pa.array([1]), pa.array(["1"]).cast(pa.string_view()), "string_view", _TEXT),
    "text in a dictionary": (
        *(pa.array([1]), pa.array(["1"]).dictionary_encode(), "dictionary", _TEXT),
    ),
    "booleans": (pa.array([1]), pa.array([True]), "bool", "a column has one type in all files"),
    "after a null day": (pa.array([None, 1]), pa.array(["1"]), "string", _TEXT),
}


@pytest.mark.parametrize("case", TWO_TYPES)
@pytest.mark.parametrize("column", ["user", "age", "hour"])
def test_ids_of_two_types_in_one_column_are_refused(
    case: str, column: str, schema: Schema, tmp_path: Path
) -> None:
    first, second, found, why = TWO_TYPES[case]
    tables = table_with(**{column: first}), table_with(**{column: second})
    with pytest.raises(
        ValueError,
        match=rf"1\.parquet: column '{column}' should hold integer values, as in .*/0\.parquet, "
        rf"found {found}.*; {why}: cast one of them$",
    ):
        source_of(tmp_path, schema, *tables)


def test_test_files_hold_the_types_of_the_training_files(schema: Schema, tmp_path: Path) -> None:
    train = source_of(tmp_path / "train", schema, table_with(user=pa.array([1]), age=pa.nulls(1)))
    pq.write_table(table_with(user=pa.array(["1"])), tmp_path / "test.parquet")
    with pytest.raises(
        ValueError, match=r"test\.parquet: column 'user' .* as in .*/train/0\.parquet, found string"
    ):
        Source(str(tmp_path / "test.parquet"), schema, train.types)
    pq.write_table(table_with(age=pa.array(["x"])), tmp_path / "test.parquet")
    test = Source(str(tmp_path / "test.parquet"), schema, train.types)
    assert test.types["age"].kind is LogicalType.STRING  # training had no value of it


def test_columns_of_one_table_hold_one_type(schema: Schema, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"0\.parquet: column 'item' looks up table 'item' with string ids, column 'history' "
        r"in .* with integer ids; cast one, or give the column a table of its own",
    ):
        source_of(
            tmp_path,
            schema,
            table_with(item=pa.array(["1"]), history=pa.array([[1]]), actions=pa.array([[1]])),
        )


def test_a_column_without_values_takes_the_type_of_its_table(
    schema: Schema, tmp_path: Path
) -> None:
    empty = pa.array([[]], pa.list_(pa.null()))
    source = source_of(
        tmp_path, schema, table_with(item=pa.array(["a"]), history=empty, actions=empty)
    )
    assert source.types["history"].kind is LogicalType.STRING


def test_a_decimal_id_that_is_not_whole_is_named(schema: Schema, tmp_path: Path) -> None:
    source = source_of(tmp_path, schema, table_with(item=pa.array([decimal.Decimal("1.5")])))
    with pytest.raises(ValueError, match=r"0\.parquet, row group 0: column 'item' should be whole"):
        values_of(source, "item")


def test_types_are_saved_and_loaded(tmp_path: Path) -> None:
    types = {"user": ColumnType(LogicalType.STRING, "data/a.parquet")}
    save_column_types(types, tmp_path / "run")
    assert load_column_types(tmp_path / "run") == types
    with pytest.raises(ValueError, match="should hold the types of a run's columns"):
        load_column_types(tmp_path)

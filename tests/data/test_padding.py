"""Padding of lists: no ids in files, nor in requests."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data.history import find_misaligned_row
from mail_torchrec.data.padding import drop_padding
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from tests.support.plain import TREE, TYPES, row


def padded_schema(padding: int | str, column: str = "history") -> Schema:
    columns: dict[str, Any] = TREE["columns"]
    return Schema.model_validate(
        {**TREE, "columns": {**columns, column: {**columns[column], "padding": padding}}}
    )


def source_of(folder: Path, schema: Schema, rows: list[dict[str, Any]], types: pa.Schema) -> Source:
    pq.write_table(pa.Table.from_pylist(rows, types), folder / "a.parquet")
    return Source(str(folder / "a.parquet"), schema)


def history_types(kind: pa.DataType) -> pa.Schema:
    types = TYPES.set(TYPES.get_field_index("history"), pa.field("history", kind))
    item = pa.string() if pa.types.is_string(kind.value_type) else pa.int64()
    return types.set(types.get_field_index("item"), pa.field("item", item))


@pytest.mark.parametrize(
    ("padding", "kind", "item"),
    [
        (0, pa.list_(pa.int64()), 5),
        (-1, pa.list_(pa.int32(), 4), 5),
        ("", pa.list_(pa.string()), "5"),
        ("<pad>", pa.list_(pa.string(), 4), "5"),
    ],
    ids=str,
)
def test_padding_before_behind_and_between_is_dropped_with_its_actions(
    padding: int | str, kind: pa.DataType, item: int | str, tmp_path: Path
) -> None:
    lists = [
        ([padding, padding, item, item], [0, 0, 1, 2]),
        ([item, padding, padding, padding], [0, 3, 0, 0]),
        ([padding] * 4, [0] * 4),
        ([item, padding, None, item], [0, 0, 5, 6]),
    ]
    rows = [row(history=items, actions=actions, item=item) for items, actions in lists]
    source = source_of(tmp_path, padded_schema(padding), rows, history_types(kind))
    table = source.read(source.row_groups[0])
    assert table["history"].to_pylist() == [[item, item], [item], [], [item, None, item]]
    assert table["actions"].to_pylist() == [[1, 2], [0], [], [0, 5, 6]]


def test_without_a_setting_every_entry_is_an_id(schema: Schema, tmp_path: Path) -> None:
    rows = [row(history=[0, 1], actions=[1, 1])]
    source = source_of(tmp_path, schema, rows, TYPES)
    assert source.read(source.row_groups[0])["history"].to_pylist() == [[0, 1]]


def test_pooled_lists_have_a_padding_too(tmp_path: Path) -> None:
    source = source_of(tmp_path, padded_schema("", "tags"), [row(tags=["", "x"])], TYPES)
    assert source.read(source.row_groups[0])["tags"].to_pylist() == [["x"]]


def test_misaligned_actions_are_still_found() -> None:
    schema = padded_schema(0)
    table = pa.Table.from_pylist([row(history=[0, 1], actions=[1])], TYPES)
    dropped = drop_padding(table, schema)
    assert find_misaligned_row(dropped, schema) is not None


@pytest.mark.parametrize(("padding", "kind"), [("0", "integer"), ("", "integer")])
def test_a_padding_of_another_type_is_refused(padding: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"columns\.history\.padding: should be of type {kind}, .*a\.parquet"
    ):
        source_of(tmp_path, padded_schema(padding), [row()], TYPES)


def test_an_integer_pads_no_strings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tags\.padding: should be of type string"):
        source_of(tmp_path, padded_schema(0, "tags"), [row()], TYPES)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("item", "padding is for kind 'list', received kind 'categorical'"),
        ("actions", "padding should be set on 'history'"),
    ],
)
def test_only_lists_of_items_or_tags_have_a_padding(column: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        padded_schema(0, column)

"""New items by every rule, and hidden items' ids, equal a plain account of the rows."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mail_torchrec.config import Config
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.items.settings import NewItemSettings
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from tests.support import plain
from tests.support.plain import Row, encoded, row, some_rows, vocabularies, write

TRAIN = [*some_rows(30), row(40, item=77), row(41, item=None, history=[8, 77, 9], actions=[1] * 3)]
TEST = [row(i, item=item) for i, item in enumerate([0, 1, 4, 8, 9, 77, 1000, None])]


def tree(**columns: dict[str, Any]) -> dict[str, Any]:
    return plain.TREE | {"columns": plain.TREE["columns"] | columns}


def chunk_of(
    folder: Path,
    rule: NewItemSettings | None,
    cold_start: ColdStartSettings,
    schema: dict[str, Any],
    rows: list[Row],
    types: pa.Schema = plain.TYPES,
) -> Chunk:
    columns = Schema.model_validate(schema)
    write(folder / "train" / "a.parquet", TRAIN if types == plain.TYPES else rows, types=types)
    write(folder / "test" / "b.parquet", rows, types=types)
    encoders = fit_encoders(Source(str(folder / "train"), columns), columns, cold_start)
    source = Source(str(folder / "test"), columns)
    encode = ChunkEncoder(columns, encoders, cold_start.of_test, 0, new_items=rule)
    return encode(source.read(source.row_groups[0]), "rows")


@pytest.mark.parametrize("most", [0, 1, 3])
@pytest.mark.parametrize("ids", [{}, {"ids": "managed", "rows": 90}])
def test_items_are_new_by_their_count_in_the_training_rows(
    tmp_path: Path, most: int, ids: dict[str, Any]
) -> None:
    schema = plain.TREE | {"tables": {"item": ids}}
    counts = Counter(
        item for train in TRAIN for item in [train["item"], *train["history"][-4:]] if item
    )
    counts[0] = sum((train["item"] == 0) + train["history"][-4:].count(0) for train in TRAIN)
    rule = NewItemSettings(max_count=most)
    flags = chunk_of(tmp_path, rule, ColdStartSettings(), schema, TEST).items
    assert flags is not None
    expected = [one["item"] is not None and counts[one["item"]] <= most for one in TEST]
    assert flags.is_new_R.tolist() == flags.is_cold_R.tolist() == expected
    assert any(expected) and not all(expected)


@pytest.mark.parametrize("by", ["column", "age"])
def test_a_column_or_an_age_says_which_items_are_new(tmp_path: Path, by: str) -> None:
    values, types = [0, 1, 1, 0], plain.TYPES.append(pa.field("sign", pa.int64()))
    column, rule = {"group": "new_item"}, None
    if by == "age":
        values, types = [5, 2, None, 3], plain.TYPES.append(pa.field("sign", pa.float64()))
        column = {"group": "item", "kind": "numeric", "transform": "log"}
        rule = NewItemSettings(age="sign", max_age=3.0)
    rows = [row(i, sign=value) for i, value in enumerate(values)]
    chunk = chunk_of(tmp_path, rule, ColdStartSettings(), tree(sign=column), rows, types)
    assert chunk.items is not None
    expected = [False, True, True, False] if by == "column" else [False, True, False, True]
    assert chunk.items.is_new_R.tolist() == expected
    assert chunk.take(slice(1, 3)).items is not None
    both = Chunk.concatenate([chunk, chunk.take(slice(0, 2))])
    assert both.items is not None and both.items.is_new_R.tolist() == expected + expected[:2]


def hidden_among(share: float) -> set[int]:
    values = [*range(-1, 12), 77, 1000]
    hashes = hash64(pa.array(values), "item").tolist()
    return {value for value, hashed in zip(values, hashes, strict=True) if hashed < share * 2**64}


def without(rows: list[Row], gone: set[int], instead: int | None) -> list[Row]:
    def shown(item: int | None) -> int | None:
        return instead if item in gone else item

    return [
        one | {"item": shown(one["item"]), "history": [*map(shown, one["history"])]} for one in rows
    ]


@pytest.mark.parametrize("train_share, test_share", [(0.5, 0.5), (0.0, 0.5), (0.2, 1.0), (0.7, 0)])
@pytest.mark.parametrize("oracle", [False, True])
def test_ids_of_hidden_items_are_unknown_ones_and_all_else_stays(
    tmp_path: Path, train_share: float, test_share: float, oracle: bool
) -> None:
    items = {"train_share": train_share, "test_share": test_share, "oracle": oracle}
    cold_start = ColdStartSettings.model_validate({"items": items})
    rows = [*TEST, *some_rows(12)]
    chunk = chunk_of(tmp_path, None, cold_start, plain.TREE, rows)
    of_training, of_test = hidden_among(train_share), hidden_among(test_share)
    withheld = (set(), set()) if oracle else (of_training, of_test)
    known = vocabularies(without(TRAIN, withheld[0], None), set())
    shown = without(rows, withheld[1], -999)
    schema = plain.schema()
    for name in plain.TABLES:
        expected = [encoded(one, name, known, set()) for one in shown]
        if name in schema.scalars:
            found = [[value] for value in chunk.scalars_CR[schema.scalars.index(name)].tolist()]
        else:
            ids = iter(chunk.lists[name].values.tolist())
            found = [[next(ids) for _ in range(n)] for n in chunk.lists[name].lengths.tolist()]
        assert found == expected, name
    assert chunk.items is not None
    is_hidden = [one["item"] in of_test for one in rows]
    assert chunk.items.is_new_R.tolist() == is_hidden
    assert chunk.items.is_cold_R.tolist() == [hidden and not oracle for hidden in is_hidden]


BASE: dict[str, Any] = {"data": {}, "schema": plain.TREE}
HASHED = plain.TREE | {"tables": {"item": {"ids": "hash", "rows": 50}}}
PRICED = tree(price={"group": "item", "kind": "numeric"})
HIDDEN = {"cold_start": {"items": {"test_share": 0.5}}}


@pytest.mark.parametrize(
    "data, schema, message",
    [
        ({"new_items": {}}, plain.TREE, "should have a rule: max_count, or age and max_age"),
        ({"new_items": {"max_count": 1}}, HASHED, "ids 'hash', which count none; choose ids"),
        ({"new_items": {"age": "hour", "max_age": 1}}, PRICED, r"kind 'numeric' \(price\), rec"),
        ({"new_items": {"age": "price"}}, PRICED, "give both or neither"),
        (
            {"new_items": {"age": "price", "max_age": 1, "max_count": 0}},
            PRICED,
            "two rules for new items; give one",
        ),
        (
            {"new_items": {"max_count": 1}},
            tree(fresh={"group": "new_item"}),
            r"schema.columns.fresh \(group 'new_item'\) are two rules",
        ),
        ({"new_items": {"item": "tags", "max_count": 1}}, plain.TREE, r"\(item\), received tags"),
        (
            {"new_items": {"item": "item", "max_count": 1}, **HIDDEN},
            plain.TREE,
            "items.item should be that of data.new_items, 'item', received null",
        ),
        ({"cold_start": {"items": {}}}, plain.TREE, "both 0, so no item is hidden"),
        (HIDDEN, tree(both={"group": "item", "cross": ["item", "city"]}), "the cross .*both would"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    data: dict[str, Any], schema: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate(BASE | {"data": data, "schema": schema})


def test_configurations_without_new_items_are_written_as_before() -> None:
    config = Config.model_validate(BASE)
    written = config.model_dump(mode="json")["data"]
    assert "new_items" not in written and "items" not in written["cold_start"]

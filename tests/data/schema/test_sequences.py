"""Declared sequences: their columns, their rules, and what stays of them in a saved schema."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.chunk import ChunkEncoder
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.schema.sequences import Join
from mail_torchrec.data.source import Source
from tests.support.sequence_rows import AS_AUTHORS, with_parts
from tests.support.small_rows import SCHEMA, config_tree, write_rows


def test_parts_become_aligned_behaviour_columns_and_the_first_bears_the_sequences_name() -> None:
    schema = Schema.model_validate(with_parts("concat"))
    assert schema.sequences == ["past"]
    assert schema.part_names("past") == ["past", "past_shelf", "past_action"]
    assert [schema.file_column(name) for name in schema.part_names("past")] == [
        "history",
        "history",
        "actions",
    ]
    assert [schema.part_target(name) for name in schema.part_names("past")] == [
        "item",
        "shelf",
        None,
    ]
    assert (schema.action_of("past"), schema.join_of("past")) == ("past_action", Join.CONCAT)
    assert schema.behaviour_dim("past") == 8 + 4 + 8
    assert Schema.model_validate(with_parts("sum")).behaviour_dim("past") == 8


def test_a_part_names_its_column_and_table_by_itself_unless_told() -> None:
    tree = with_parts("concat")
    tree["sequences"] = {"past": {"item": {}, "shelf": {"table": "shelf"}}}
    tree["tables"] = {}
    schema = Schema.model_validate(tree)
    assert [schema.file_column(name) for name in schema.sequences] == ["past_item"]
    assert [schema.table_of(name) for name in schema.part_names("past")] == ["item", "shelf"]


def test_the_table_of_the_match_loss_may_be_of_another_part() -> None:
    schema = Schema.model_validate(AS_AUTHORS)
    assert schema.match_column("past") == "past_shelf"
    assert schema.joined_parts("past") == ["past", "past_shelf"]
    assert schema.unjoined_tables == ["actions"]


@pytest.mark.parametrize("tree", [with_parts("sum"), AS_AUTHORS, SCHEMA])
def test_a_schema_is_saved_as_it_was_declared(tree: dict[str, Any]) -> None:
    schema = Schema.model_validate(tree)
    saved = schema.model_dump(mode="json")
    assert saved["columns"].keys() == tree["columns"].keys()
    assert ("sequences" in saved) == ("sequences" in tree)
    assert Schema.model_validate(saved) == schema
    assert Schema.model_validate_json(schema.model_dump_json()) == schema


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "match": ({"match": "colour"}, r"past\.match: should name a part \(item, shelf, action\)"),
    "match of actions": (
        {"match": "action"},
        "share table 'actions' with part 'action', found none",
    ),
    "own key": ({"joined": False}, "should be a part, .*or one of the sequence's own keys"),
    "first part": ({"item": {"joined": False}}, "the first part should be joined"),
    "no target": ({"item": {"table": "hour"}}, r"share table 'hour' .*\(the target item\)"),
    "two targets": ({"shelf": {"table": "tags"}}, "holds behaviours, which a pooled list cannot"),
    "mistyped join": ({"jion": "sum"}, r"past: 'jion: sum' should be a part .* or the key 'join'"),
    "mistyped match": ({"macth": "shelf"}, "'macth: shelf' should be .* or the key 'match'"),
    "mistyped padding": ({"paddding": "-1"}, "'paddding: -1' should be .* or the key 'padding'"),
    "part": ({"action": {"colum": "actions"}}, "Extra inputs are not permitted"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_sequence_is_refused_with_the_remedy(case: str) -> None:
    change, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        Schema.model_validate(with_parts("concat", **change))


def test_parts_that_look_like_keys_are_parts_where_their_columns_do_not() -> None:
    parts = {"watch": "watched_seconds", "joint": "joints", "spending": {"table": "t"}}
    schema = Schema.model_validate(with_parts("concat", **parts))
    assert list(schema.declared_sequences["past"].parts)[-3:] == list(parts)


def test_sorted_keys_are_named_as_the_cause_of_another_main_part() -> None:
    tree = with_parts("concat")
    tree["sequences"]["past"] = dict(sorted(tree["sequences"]["past"].items()))
    message = r"main part first: 'action' is now \(of action, item, shelf\)"
    with pytest.raises(ValueError, match=message):
        Schema.model_validate(tree)


def test_names_that_are_taken_and_sequences_without_parts_are_refused() -> None:
    tree = with_parts("concat")
    taken = tree | {"columns": tree["columns"] | {"past_shelf": {"group": "context"}}}
    with pytest.raises(ValueError, match=r"part 'shelf' makes a column 'past_shelf'.*rename"):
        Schema.model_validate(taken)
    with pytest.raises(ValueError, match="Input should be 'concat', 'sum' or 'product'"):
        Schema.model_validate(with_parts("max"))
    with pytest.raises(ValueError, match=r"sequences\.past: should have a part at least"):
        Schema.model_validate(tree | {"sequences": {"past": {}}})


def test_misaligned_lists_are_named_with_file_row_and_both_columns(tmp_path: Path) -> None:
    write_rows(tmp_path / "train" / "a.parquet", 60, seed=1, row_group_size=60)
    table = pq.read_table(tmp_path / "train" / "a.parquet")
    actions = table["actions"].to_pylist()
    row = next(i for i, given in enumerate(actions) if len(given) > 2)
    actions[row] = actions[row][:-1]
    index = table.column_names.index("actions")
    pq.write_table(
        table.set_column(index, "actions", pa.array(actions)), tmp_path / "train" / "a.parquet"
    )
    config = Config.model_validate(config_tree(tmp_path, schema=with_parts("concat")))
    source = Source(config.data.path("train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    encode = ChunkEncoder(config.schema_, encoders, config.data.cold_start, 0)
    length = len(actions[row])
    with pytest.raises(
        ValueError,
        match=r"a\.parquet, row group 0: column 'actions' should be as long as 'history' in every "
        rf"row, received {length} entries on {length + 1} items in row {row} ",
    ):
        encode(source.read(source.row_groups[0]), source.file(source.row_groups[0]))

"""Rules of a schema, and the groups of columns that follow from it."""

from copy import deepcopy
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from mail_torchrec.data.schema.feature_tables import build_feature_tables
from mail_torchrec.data.schema.schema import Actions, Group, Schema
from tests.support.plain import TREE


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    """The small schema with keys of columns or tables set; a column that is None is left out."""
    tree = deepcopy(TREE) | {"tables": {}}
    for section, entries in sections.items():
        for name, keys in entries.items():
            if keys is None:
                del tree[section][name]
            else:
                tree[section][name] = tree[section].get(name, {}) | keys
    return tree


HISTORY_2 = {"group": "behaviour", "kind": "list", "table": "item", "max_length": 4}

BROKEN = {
    "no label": ({"clicked": None}, {}, "exactly one column must have group 'label', found none"),
    "two labels": (
        {"bought": {"group": "label"}},
        {},
        r"exactly one column must have group 'label', found \['clicked', 'bought'\]",
    ),
    "no key": ({"user": None}, {}, "exactly one column must have group 'group_key', found none"),
    "two flags": (
        {"a": {"group": "new_user"}, "b": {"group": "new_user"}},
        {},
        r"at most one column .* 'new_user', found \['a', 'b'\]",
    ),
    "two conversions": (
        {"a": {"group": "conversion"}, "b": {"group": "conversion"}},
        {},
        r"at most one column .* 'conversion', found \['a', 'b'\]",
    ),
    "no attribute": (
        {"age": None, "city": None},
        {},
        "at least one column of ids must have group 'attribute', found none",
    ),
    "no behaviour": (
        {"history": None, "actions": None},
        {},
        "at least one column of ids must have group 'behaviour', found none",
    ),
    "dot in a column": (
        {"a.b": {"group": "context"}},
        {},
        r"columns\.a\.b: a column name must not be empty or hold '\.' or '/', received 'a\.b'",
    ),
    "slash in a table": (
        {"hour": {"table": "a/b"}},
        {},
        r"columns\.hour: a table name must not be empty or hold '\.' or '/', received 'a/b'",
    ),
    "behaviour of one id": (
        {"history": {"kind": "categorical"}},
        {},
        r"columns\.history: a behaviour column must have kind 'list', received kind 'categorical'",
    ),
    "actions of nothing": (
        {"actions": {"action_of": "past"}},
        {},
        r"columns\.actions: action_of should name a behaviour column of items, received 'past'",
    ),
    "actions of an item": (
        {"actions": {"action_of": "item"}},
        {},
        "action_of should name a behaviour column of items, received 'item'",
    ),
    "actions that are context": (
        {"actions": None, "hour": {"action_of": "history"}},
        {},
        r"columns\.hour: action_of should name a behaviour",
    ),
    "actions of actions": (
        {"more": HISTORY_2 | {"table": "more", "action_of": "actions"}},
        {},
        "action_of should name a behaviour column of items",
    ),
    "two actions": (
        {"more": HISTORY_2 | {"table": "more", "action_of": "history"}},
        {},
        r"columns\.history: at most one column may be action_of it",
    ),
    "lengths": (
        {"actions": {"max_length": 9}},
        {},
        r"columns\.actions: max_length should be that of 'history', 4, received 9",
    ),
    "numeric table": (
        {"income": {"table": "money"}},
        {},
        r"columns\.income: a numeric column looks up no table",
    ),
    "transform of ids": (
        {"hour": {"transform": "log"}},
        {},
        r"columns\.hour: transform 'log' is for kind 'numeric', received kind 'categorical'",
    ),
    "list on an item table": (
        {"tags": {"table": "item"}},
        {},
        r"columns\.tags: table 'item' holds behaviours",
    ),
    "no target": (
        {"item": {"table": "other"}},
        {},
        r"columns\.history: exactly one item column must share table 'item' .*found none",
    ),
    "two targets": (
        {"next": {"group": "item", "table": "item"}},
        {},
        r"exactly one item column must share .*found \['item', 'next'\]",
    ),
    "unused table": ({}, {"colour": {}}, r"schema\.tables: \['colour'\] are used by no column"),
    "numeric column's table": (
        {},
        {"income": {}},
        r"schema\.tables: \['income'\] are used by no column",
    ),
    "hash without rows": (
        {},
        {"hour": {"ids": "hash"}},
        r"schema\.tables\.hour: ids 'hash' needs 'rows'",
    ),
    "no dim": (
        {},
        {"age": {"dim": "most"}},
        r"should be a whole number of at least 1, or 'auto', received 'most'",
    ),
}


@pytest.mark.parametrize(
    "character", ["\n", "\t", "\0", "\x1b", "\x7f", "\x85", "\u2028", "\ud800"]
)
@pytest.mark.parametrize("what", ["column", "table"])
def test_a_name_with_a_control_character_is_refused(character: str, what: str) -> None:
    name = f"a{character}b"
    column = {"group": "context"} | ({"table": name} if what == "table" else {})
    tree = changed(columns={name if what == "column" else "hour": column})
    with pytest.raises(ValidationError, match=rf"a {what} name must not hold newlines .*'a\\"):
        Schema.model_validate(tree)


@pytest.mark.parametrize(("name", "fits"), [("é" * 100, True), ("é" * 100 + "x", False)])
def test_a_name_has_at_most_200_bytes(name: str, fits: bool) -> None:
    tree = changed(columns={name: {"group": "context"}})
    if fits:
        assert name in Schema.model_validate(tree).table_names
        return
    with pytest.raises(ValidationError, match="longer than 200 bytes, received 201"):
        Schema.model_validate(tree)


@pytest.mark.parametrize(("columns", "tables", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_rule_names_the_column_and_what_was_found(
    columns: dict[str, Any], tables: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Schema.model_validate(changed(columns=columns, tables=tables))


@pytest.mark.parametrize(
    "key",
    [
        {"rows": 2},
        {"min_count": 0},
        {"dim": 0},
        {"init_range": -1.0},
        {"ids": "hashed"},
        {"row": 3},
    ],
)
def test_a_table_refuses_values_out_of_range(key: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(key))):
        Schema.model_validate(changed(tables={"hour": key}))


def test_columns_that_name_one_table_share_it() -> None:
    schema = Schema.model_validate(
        changed(columns={"seen": HISTORY_2, "favourite": {"group": "attribute", "table": "item"}})
    )
    assert schema.table_names == ["age", "city", "item", "actions", "hour", "tags"]
    assert schema.sequences == ["history", "seen"]
    assert [schema.target_of(name) for name in schema.sequences] == ["item", "item"]
    assert schema.unpooled == ["history", "actions", "item", "seen", "favourite"]
    assert schema.unpooled_scalars == ["item", "favourite"]
    assert schema.pooled == ["age", "city", "hour", "tags"]
    assert (schema.action_of("history"), schema.action_of("seen")) == ("actions", None)


def test_fields_stand_in_schema_order_with_target_items_first() -> None:
    tree = changed(columns={"item": None})
    tree["columns"] |= {"brand": {"group": "item"}, "item": {"group": "item"}}
    schema = Schema.model_validate(tree)
    assert schema.fields(Group.ITEM) == ["item", "tags", "brand"]
    assert schema.fields(Group.ATTRIBUTE) == ["age", "city"]
    assert schema.numeric() == ["income"]
    assert schema.numeric(Group.ITEM) == []


def test_scalars_and_lists_are_the_id_columns(schema: Schema) -> None:
    assert schema.lists == ["history", "actions", "tags"]
    assert sorted(schema.scalars + schema.lists) == sorted(schema.id_columns)


def test_dimensions_come_from_the_table_or_the_schema() -> None:
    schema = Schema.model_validate(
        changed(tables={"actions": {"dim": 2}, "hour": {"dim": 6}}) | {"actions": "concat"}
    )
    assert [schema.table_dim(name) for name in ("hour", "item", "actions")] == [6, 4, 2]
    assert schema.behaviour_dim("history") == 4 + 2
    assert schema.model_copy(update={"actions": Actions.IGNORE}).behaviour_dim("history") == 4


def test_a_file_column_may_have_another_name_and_serve_twice() -> None:
    schema = Schema.model_validate(
        changed(columns={"who": {"group": "attribute", "column": "user"}})
    )
    assert schema.file_column("who") == schema.file_column("user") == "user"


def test_a_conversion_is_no_feature(schema: Schema) -> None:
    bought = Schema.model_validate(changed(columns={"bought": {"group": "conversion"}}))
    assert (schema.conversion, bought.conversion) == (None, "bought")
    assert (bought.id_columns, bought.numeric(), bought.table_names) == (
        schema.id_columns,
        schema.numeric(),
        schema.table_names,
    )


def test_yaml_round_trip(schema: Schema) -> None:
    text = yaml.safe_dump(schema.model_dump(mode="json"), sort_keys=False)
    again = Schema.model_validate(yaml.safe_load(text))
    assert again == schema
    assert list(again.columns) == list(schema.columns)


def test_the_worked_example_of_the_docstring_is_a_schema() -> None:
    assert Schema.__doc__ is not None
    lines = Schema.__doc__.split("::\n\n")[1].split("\n\n")[0]
    schema = Schema.model_validate(yaml.safe_load(lines))
    assert schema.sequences == ["history"]
    assert schema.table("item").rows == 1_000_000


def test_a_schema_whose_fields_all_share_the_item_table_is_refused() -> None:
    columns = {
        "user": {"group": "group_key"},
        "clicked": {"group": "label"},
        "favourite": {"group": "attribute", "table": "item"},
        "history": {"group": "behaviour", "kind": "list", "table": "item"},
        "item": {"group": "item"},
    }
    with pytest.raises(
        ValueError, match="at least one column should look up a table that holds no behaviours"
    ):
        build_feature_tables(Schema.model_validate({"columns": columns}), needs_match=False)

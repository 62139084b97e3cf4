"""Settings that change nothing are told, and none of a configuration that uses all."""

from pathlib import Path
from typing import Any

import pytest

from mail_torchrec.config import Config
from mail_torchrec.model.unused_settings import unused_settings
from tests.support.every_kind import every_kind
from tests.support.sequence_rows import with_parts
from tests.support.small_rows import SCHEMA, config_tree


def found(root: Path, **sections: Any) -> list[str]:
    sections = {"model": {"multi_task": {}}} | sections
    config = Config.model_validate(config_tree(root, **sections))
    return unused_settings(config.model, config.schema_, config.data)


def sequence_with(**parts: Any) -> dict[str, Any]:
    """The sequence without its actions, and with other parts."""
    schema = with_parts("concat", **parts)
    past = {name: part for name, part in schema["sequences"]["past"].items() if name != "action"}
    return {"schema": schema | {"sequences": {"past": past}}}


def of_columns(**columns: dict[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA | {"columns": SCHEMA["columns"] | columns}}


def of_model(**model: Any) -> dict[str, Any]:
    return {"model": {"multi_task": {}} | model}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "label of no task": (
        of_columns(seconds={"group": "task_label", "kind": "numeric"}),
        "schema.columns.seconds: no task learns this label; add model.tasks.NAME: "
        "{label: seconds}, or drop the column",
    ),
    "conversion": (
        {"model": {"multi_task": None}},
        "schema.columns.bought: nothing learns this conversion, which model.multi_task does; set "
        "it, or drop the column",
    ),
    "length of no list": (
        of_columns(hour={"group": "context", "max_length": 7}),
        "schema.columns.hour: max_length changes nothing of a column of group 'context' and kind "
        "'categorical'; drop it, or correct the kind",
    ),
    "table of a key": (
        of_columns(user={"group": "group_key", "table": "user", "max_length": 3}),
        "schema.columns.user: table, max_length changes nothing of a column of group 'group_key' "
        "and kind 'categorical'; drop it, or correct the kind",
    ),
    "part beside action": (
        sequence_with(actions={"column": "actions"}),
        "schema.sequences.past.actions: a part named 'action' is what was done with each item, "
        "'actions' is a part as any other; rename it if it is the actions",
    ),
    "day": (
        of_columns(day={"group": "day", "column": "date"}),
        "schema.columns.day: nothing reads the day of a row, which data.cold_start.by=user_day "
        "does; set it, or drop the column",
    ),
    "days of nobody": (
        of_columns(day={"group": "day", "column": "date"})
        | {"data": {"cold_start": {"by": "user_day"}}},
        "data.cold_start.by: no user is hidden, by days or otherwise; set "
        "data.cold_start.hide_share, or drop it",
    ),
    "mixing of nothing": (
        of_model(mixing_strength=3.0),
        "model.mixing_strength: no cold user has a behaviour to mix with virtual ones; set "
        "data.new_user_max_behaviours above 0, or drop it",
    ),
    "temperature": (
        of_model(zero_shot={"temperature": 0.1}),
        "model.zero_shot.temperature: changes nothing without alignment contrastive; drop it, or "
        "set that",
    ),
    "crosses": (
        of_model(attribute_crosses={"form": "fm", "rank": 8}),
        "model.attribute_crosses.rank: changes nothing without form bilinear; drop it, or set that",
    ),
    "mean items": (
        {"data": {"new_items": {"max_count": 0}}}
        | of_model(virtual_items={"fill": "mean", "hidden_dims": [9]}),
        "model.virtual_items.hidden_dims: changes nothing without fill generated; drop it, or set "
        "that",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_changes_nothing_is_told(tmp_path: Path, case: str) -> None:
    sections, message = CASES[case]
    assert found(tmp_path, **sections) == [message]


def test_of_what_is_used_nothing_is_told(tmp_path: Path) -> None:
    assert found(tmp_path) == []
    used = {"alignment": "contrastive", "temperature": 0.1, "alignment_weight": 2.0}
    used |= {"reconstruction_target": "mixture", "num_prototypes": 4}
    used |= {"virtual_length": "predicted"}
    model = {"zero_shot": used, "mixing_strength": 3.0, "attribute_crosses": {"rank": 8}}
    assert found(tmp_path, data={"new_user_max_behaviours": 5}, **of_model(**model)) == []
    config = Config.model_validate(every_kind(tmp_path))
    assert unused_settings(config.model, config.schema_, config.data) == []

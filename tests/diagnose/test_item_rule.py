"""New items are those of the configured rule, where there is one."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from mail_torchrec.config import Config, load_config
from mail_torchrec.diagnose.cold_rows import count_cold_rows
from mail_torchrec.diagnose.diagnosis import diagnose
from mail_torchrec.diagnose.item_rule import read_item_rule
from mail_torchrec.diagnose.new_items import NewItemRows, new_item_rows
from mail_torchrec.diagnose.sampled_rows import read_sample
from mail_torchrec.diagnose.verdict import Remedy, is_gain
from tests.diagnose.conftest import NUM_ITEMS, planted_log, write_log

NEW = NUM_ITEMS // 4
"""Items below it are new on the test day: training has no row of them, nor does a history."""


def log_with_new_items() -> dict[str, pa.Table]:
    """Makes the planted log, whose first quarter of items is in no training row or history.

    Of these, item 0 has two training rows.
    """
    tables = planted_log()
    for part, table in tables.items():
        columns = {name: table[name].to_pylist() for name in table.column_names}
        columns["seen"] = [[item for item in seen if item >= NEW] for seen in columns["seen"]]
        columns["age_days"] = [1.0 if item < NEW else 9.0 for item in columns["item"]]
        columns["is_new"] = [int(item < NEW) for item in columns["item"]]
        made = pa.table(columns)
        if part == "train":
            few = np.flatnonzero(np.array(columns["item"]) == 0)[:2]
            is_old = np.array(columns["item"]) >= NEW
            made = made.take(np.sort(np.concatenate([few, np.flatnonzero(is_old)])))
        tables[part] = made
    return tables


def config_of(folder: Path, columns: dict[str, Any], rule: dict[str, Any] | None) -> Config:
    path = write_log(folder, log_with_new_items())
    tree = yaml.safe_load(path.read_text())
    tree["schema"]["columns"] |= columns
    if rule is not None:
        tree["data"]["new_items"] = rule
    path.write_text(yaml.safe_dump(tree))
    return load_config(path, [])


AGE = {"age_days": {"group": "item", "kind": "numeric"}}
FLAG = {"is_new": {"group": "new_item"}}


@pytest.mark.parametrize(
    ("columns", "rule", "num_new", "words"),
    [
        (AGE, {"age": "age_days", "max_age": 2}, NEW, "'age_days' is at most 2"),
        (FLAG, None, NEW, "column 'is_new' is 1"),
        ({}, {"max_count": 2}, NEW, "training has 'item' at most 2 times"),
        ({}, {"max_count": 1}, NEW - 1, "training has 'item' at most 1 times"),
    ],
)
def test_new_items_are_those_of_the_rule(
    tmp_path: Path, columns: dict[str, Any], rule: dict[str, Any] | None, num_new: int, words: str
) -> None:
    config = config_of(tmp_path, columns, rule)
    items_R = log_with_new_items()["test"]["item"].to_numpy()
    is_new_R = (items_R < NEW) & (items_R >= NEW - num_new)
    found = read_item_rule(config)
    assert found is not None and found.text == words
    cold = count_cold_rows(config, found)
    assert cold.item_rule == words and cold.days[-1].new_items is not None
    assert cold.test_new_items == pytest.approx(is_new_R.mean())
    assert cold.days[-1].new_items == pytest.approx(is_new_R.mean())
    sample = read_sample(config, 10_000, found)
    np.testing.assert_array_equal(sample.is_new_item_R, is_new_R)
    chosen = new_item_rows(sample)
    assert isinstance(chosen, NewItemRows)
    # Each is an item of its own, though training does not have it, and no other model sees one.
    assert chosen.num_items == num_new and len(chosen.test) == is_new_R.sum()
    place = sample.schema.scalars.index("item")
    assert not np.isin(chosen.others.scalars_CR[place], chosen.test.scalars_CR[place]).any()
    # The items are known by other users' test rows: each row is scored once.
    (first, scored), (second, others) = chosen.known
    assert isinstance(scored, np.ndarray) and isinstance(others, np.ndarray)
    assert sorted([*scored, *others]) == list(range(len(chosen.test)))
    assert len(first) == len(sample.train) + len(others)
    assert not np.isin(first.users_R[len(sample.train) :], chosen.test.users_R[scored]).any()
    assert len(second) == len(sample.train) + len(scored)


def test_without_a_rule_items_are_held_out_as_before(tmp_path: Path) -> None:
    config = load_config(write_log(tmp_path, planted_log()), [])
    assert read_item_rule(config) is None
    assert count_cold_rows(config).item_rule is None
    sample = read_sample(config, 10_000)
    assert sample.is_new_item_R is None
    chosen = new_item_rows(sample)
    assert isinstance(chosen, NewItemRows)
    assert [places for _, places in chosen.known] == [slice(None)]


@pytest.mark.long
def test_content_of_new_items_is_found_to_pay_and_the_page_names_the_rule(tmp_path: Path) -> None:
    found = diagnose(config_of(tmp_path, {}, {"max_count": 0}), 10_000)
    assert found.verdict.new_items == [Remedy.CONTENT]
    assert is_gain(found.new_items.content)
    text = found.text()
    assert "Trees fitted without the new items (those of which training has 'item' at most" in text
    assert "test rows of new items (training has 'item' at most 0 times)" in text

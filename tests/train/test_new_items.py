"""A run with new items: metrics, predictions and comparison by items; the others stay."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import Config
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.reporting.cohorts import COHORTS, ITEM_COHORTS, USER_ITEM_COHORTS
from mail_torchrec.reporting.comparison import as_markdown, compare
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import config_tree, write_rows

HIDDEN = {"cold_start": {"hide_share": 0.3, "items": {"train_share": 0.1, "test_share": 0.5}}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("new_items")
    for part, seed in (("train", 1), ("test", 2)):
        write_rows(root / part / "a.parquet", 160, seed)
    settings: dict[str, dict[str, Any]] = {
        "plain": {},
        "ruled": {"new_items": {"max_count": 12}},
        "hidden": HIDDEN,
    }
    for name, data in settings.items():
        tree = config_tree(root, data={"root": str(root)} | data)
        tree["train"] = tree["train"] | {"save_predictions": True}
        train(Config.model_validate(tree | {"name": name}), RunDir(root / name))
    return {name: root / name for name in settings}


def metrics_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def test_a_rule_adds_cohorts_and_changes_nothing_else(runs: dict[str, Path]) -> None:
    plain, ruled = metrics_of(runs["plain"]), metrics_of(runs["ruled"])
    assert tuple(ruled) == (*COHORTS, *ITEM_COHORTS, *USER_ITEM_COHORTS)
    assert {name: ruled[name] for name in COHORTS} == plain
    assert 0 < ruled["new_items"]["rows"] < ruled["all"]["rows"]


@pytest.mark.parametrize("name", ["ruled", "hidden"])
def test_cohorts_are_those_of_the_written_rows(runs: dict[str, Path], name: str) -> None:
    found, table = metrics_of(runs[name]), pq.read_table(runs[name] / "predictions")
    new_users, new_items = (table[one].to_numpy() for one in ("is_new", "is_new_item"))
    assert found["new_items"]["rows"] == new_items.sum()
    assert found["new_users_old_items"]["rows"] == (new_users & ~new_items).sum()
    assert "is_new_item" not in pq.read_table(runs["plain"] / "predictions").column_names


def test_the_comparison_has_a_table_by_items_where_all_runs_do(runs: dict[str, Path]) -> None:
    both = compare([runs["ruled"]])
    assert "method, by items" in as_markdown(both)
    assert both[0].metrics["new_items"]["auc"] is not None
    assert "by items" not in as_markdown(compare([runs["ruled"], runs["plain"]]))
    with pytest.raises(ValueError, match="new rows: "):
        compare([runs["ruled"], runs["hidden"]])


def test_the_oracle_reports_the_same_items_and_shows_their_ids(runs: dict[str, Path]) -> None:
    shown = evaluate_run(RunDir(runs["hidden"]), None, ["data.cold_start.items.oracle=true"])
    hidden = metrics_of(runs["hidden"])
    for name in USER_ITEM_COHORTS:
        assert shown[name]["rows"] == hidden[name]["rows"] > 0
    assert shown["all"]["auc"] != hidden["all"]["auc"]

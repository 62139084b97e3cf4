"""The section of new items: the configured model, and what can stand in for withheld ids."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import load_config
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.items.settings import HiddenItemSettings
from mail_torchrec.metrics.auc import auc
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.reproduce.jobs import plan_trainings
from mail_torchrec.reproduce.methods.definitions import METHODS
from mail_torchrec.reproduce.methods.item_methods import ITEM_METHODS
from mail_torchrec.reproduce.methods.resolution import resolve_config
from mail_torchrec.reproduce.methods.selection import SECTION_METHODS, section_methods
from mail_torchrec.reproduce.tables import make_table
from tests.reproduce.conftest import HIDING
from tests.support.saved_predictions import save_predictions
from tests.support.small_rows import config_tree, write_rows

BASE, ORACLE = "configured model", "configured model oracle"
NAMES = [method.name for method in ITEM_METHODS]
WITHHELD = HiddenItemSettings(train_share=0.2, test_share=0.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The configuration of a user whose items are withheld, and who has a generator already."""
    for part, seed in (("train", 1), ("test", 2)):
        write_rows(tmp_path / part / "a.parquet", 160, seed)
    data = {
        "root": str(tmp_path),
        "new_items": {"max_count": 0},
        "cold_start": {"items": {"train_share": 0.2, "test_share": 0.5}},
    }
    model = {"zero_shot": None, "virtual_items": {"dropout": 0.7, "mse_weight": 3.0}}
    tree = config_tree(tmp_path, data=data, model=model)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "config.yaml"


@pytest.mark.parametrize("name", NAMES)
def test_a_method_changes_what_stands_in_for_ids_and_nothing_else(name: str, path: Path) -> None:
    own, found = load_config(path, []), resolve_config(METHODS[name], path, (), seed=4)
    assert (found.name, found.train.seed, found.train.save_predictions) == (name, 4, True)
    assert (found.model.virtual_items is None) == (name in (BASE, ORACLE))
    if found.model.virtual_items is not None:  # nothing of the user's own generator is left
        assert found.model.virtual_items.dropout in (0, 0.2, 0.5)
        assert found.model.virtual_items.mse_weight in (0, 1)
    assert found.data.cold_start.items == WITHHELD.model_copy(update={"oracle": name == ORACLE})
    alike = found.model.model_copy(update={"virtual_items": own.model.virtual_items})
    assert alike == own.model


def test_keys_of_item_methods_are_theirs_and_the_tower_is_the_users(path: Path) -> None:
    with pytest.raises(ValueError, match=r"'model\.virtual_items' is what the methods"):
        resolve_config(METHODS[BASE], path, ("model.virtual_items={}",), 1)
    with pytest.raises(ValueError, match=r"'model\.virtual_items' is what the methods"):
        resolve_config(METHODS[BASE], path, ("model.virtual_items.dropout=0.9",), 1)
    override = "model.tower=base_dnn", "model.tower_options={}"
    assert resolve_config(METHODS[BASE], path, override, 1).model.tower == "base_dnn"


def test_items_has_its_own_methods_and_leaves_the_oracle_out_where_nothing_is_withheld(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert section_methods("items", [], ColdStartSettings(items=WITHHELD)) == NAMES
    for nothing in (HIDING, ColdStartSettings(items=HiddenItemSettings(train_share=0.2))):
        assert section_methods("items", [], nothing) == NAMES[:-1]
        assert "data.cold_start.items.test_share=0 hides nothing" in capsys.readouterr().err
    assert set(SECTION_METHODS["coldrec"]) == set(NAMES) - {ORACLE}
    of_items = ("items", "coldrec")
    others = [set(names) for section, names in SECTION_METHODS.items() if section not in of_items]
    assert not set(NAMES) & set().union(*others)
    with pytest.raises(ValueError, match=r"items has no method \['BaseDNN'\]"):
        section_methods("items", ["BaseDNN"], HIDING)


def test_the_table_is_of_the_rows_of_new_items(path: Path, tmp_path: Path) -> None:
    jobs = plan_trainings(path, tmp_path / "out", [BASE, f"{BASE} + mean fill", ORACLE], 1, ())
    generator = np.random.default_rng(0)
    labels, users = generator.integers(2, size=900), generator.integers(90, size=900)
    is_new_item = generator.random(900) < 0.4
    cohorts = {"new_items": {"rows": 357, "users": 90}, "old_items": {"rows": 543, "users": 90}}
    expected = {}
    for job, gain in zip(jobs, (0.2, 0.8, 1.5), strict=True):
        job.path.mkdir(parents=True)
        scores = generator.normal(size=900) + np.where(is_new_item, gain, 0.2) * labels
        rows = Predictions.from_columns(scores, labels, users, users % 2 == 0)
        save_predictions(rows, job.run_dir.predictions, is_new_item)
        job.run_dir.metrics.write_text(json.dumps(cohorts))
        expected[job.method] = auc(rows.scores_R[is_new_item], rows.labels_R[is_new_item])
    section = make_table("items", jobs, tmp_path / "out", num_resamples=50)
    found = {
        row["name"]: row["metrics"]["new"]["auc"]["mean"] for row in section.content["methods"]
    }
    assert found == pytest.approx(expected)
    assert "357 rows of new items, of 90 users" in section.text
    [verdict, _] = section.verdicts
    assert "against configured model, AUC: new items +" in verdict and "; old items " in verdict
    assert "users" not in verdict and "It recovers " in verdict


def run(path: Path, *words: str) -> tuple[int, str]:
    command = ["reproduce", "items", "--config", str(path), "--out", str(path.parent / "out")]
    result = CliRunner().invoke(main, [*command, "--seeds", "1", *words])
    return result.exit_code, f"{result.output}{result.exception}"


def test_without_new_items_or_with_the_papers_metrics_it_says_what_to_do(path: Path) -> None:
    nothing = "data.cold_start.items=null", "data.new_items=null"
    code, output = run(path, *nothing)
    assert code and "set data.new_items" in output  # what the user's own generator asks for
    tree = yaml.safe_load(path.read_text())
    del tree["model"]["virtual_items"]
    path.write_text(yaml.safe_dump(tree))
    code, output = run(path, *nothing)
    assert code and "nothing says which items are new; withhold the ids of some" in output
    code, output = run(path, "--paper", "public")
    assert code == 2 and "items does not have --paper" in output


@pytest.mark.usefixtures("preloaded_runs")
def test_methods_are_trained_and_compared_and_what_is_finished_is_kept(path: Path) -> None:
    chosen = "--method", BASE, "--method", f"{BASE} + virtual items + dropout"
    code, output = run(path, *chosen, "--jobs", "2")
    assert not code, output
    out = path.parent / "out"
    assert "new items" in (out / "items.md").read_text() and (out / "items.png").exists()
    assert "New items: what can stand in for their ids" in (out / "report.html").read_text()
    before = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/*/metrics.json")}
    assert len(before) == 2
    code, output = run(path, *chosen)
    assert not code and all(file.stat().st_mtime_ns == time for file, time in before.items())

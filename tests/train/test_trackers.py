"""A training tells its trackers what it tells TensorBoard, and goes on as the same run."""

import json
from pathlib import Path
from typing import Any

import pytest

from mail_torchrec.config import Config
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.recording_tracker import recorded, recorded_values
from tests.support.small_rows import config_tree, write_rows

RECORDING = "tests.support.recording_tracker:RecordingTracker"


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """A small configuration with validation rows and a tracker."""
    write_rows(tmp_path / "train" / "a.parquet", 250, seed=1)
    write_rows(tmp_path / "test" / "c.parquet", 120, seed=3)
    tree = config_tree(tmp_path)
    tree["data"]["validation"] = {"share": 0.3}
    options = {"to": str(tmp_path / "calls.jsonl")}
    return tree | {"trackers": [{"name": RECORDING, "options": options}]}


def test_all_numbers_of_the_log_arrive_and_the_final_metrics(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = RunDir(tmp_path / "run")
    metrics = train(Config.model_validate(tree), run_dir)
    calls, values = recorded(tmp_path / "calls.jsonl"), recorded_values(tmp_path / "calls.jsonl")
    found = {(name, step): value for name, value, step in values}
    log = [json.loads(line) for line in run_dir.log.read_text().splitlines()]
    losses = [record for record in log if "loss/L_rt" in record]
    validations = [record for record in log if "validation" in record]
    assert losses and validations
    for record in losses:
        assert found["loss/L_rt", record["step"]] == record["loss/L_rt"]
    for record in validations:
        for cohort, by_name in record["validation"].items():
            assert found[f"validation/{cohort}/rows", record["step"]] == by_name["rows"]
    [step] = {step for name, _, step in values if name == "test/all/auc"}
    assert found["test/all/auc", step] == metrics["all"]["auc"]
    assert calls[0][2]["train.batch_size"] == str(tree["train"]["batch_size"])
    assert calls[-1][:2] == ["finish", "finished"]
    assert {"config.yaml", "metrics.json", "plan.json", "loss_curves.png"} <= set(calls[-1][2])


def test_a_run_that_failed_is_told_so_and_goes_on_as_itself(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run_dir = Config.model_validate(tree), RunDir(tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr("mail_torchrec.train.trainer._evaluate_job", _fail)
        train(config, run_dir)
    train(config, run_dir, resume=True)
    calls = recorded(tmp_path / "calls.jsonl")
    assert [call[1] for call in calls if call[0] == "start"] == ["small-1", "small-1"]
    assert [call[1] for call in calls if call[0] == "finish"] == ["failed", "finished"]


def _fail(*arguments: object) -> None:
    raise RuntimeError("out of memory")


def test_options_that_do_not_fit_are_refused_before_the_data_are_read(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    bad = [{"name": RECORDING}], [tree["trackers"][0]] * 2
    for trackers, message in zip(bad, ["given a file 'to'", "each name should"], strict=True):
        with pytest.raises(ValueError, match=message):
            train(Config.model_validate(tree | {"trackers": trackers}), RunDir(tmp_path / "run"))
        assert not (tmp_path / "run" / "vocabularies").exists()

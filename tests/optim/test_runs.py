"""Whole runs with averaged weights: what is evaluated, recorded, exported and refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.export.finished_run import FinishedRun
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.checkpoint.test_resume import as_killed, log, tensors
from tests.support.small_rows import config_tree, write_rows

SETTINGS: dict[str, Any] = {"epochs": 2, "log_every": 1}
EMA = SETTINGS | {"ema": {"decay": 0.9}, "schedule": {"name": "cosine", "warmup_steps": 4}}


def config(root: Path, settings: dict[str, Any]) -> Config:
    return Config.model_validate(config_tree(root, train=settings, checkpoint={"every": 5}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``ema`` and ``plain``, which are trained alike."""
    root = tmp_path_factory.mktemp("runs")
    write_rows(root / "train/a.parquet", 250, seed=1)
    write_rows(root / "test/b.parquet", 120, seed=2)
    for name, settings in (("ema", EMA), ("plain", EMA | {"ema": None})):
        train(config(root, settings), RunDir(root / name))
    return root


def test_averages_are_evaluated_and_exported_and_training_does_not_see_them(runs: Path) -> None:
    averaged, plain = tensors(runs / "ema"), tensors(runs / "plain")
    averages = {key.removeprefix("ema."): v for key, v in averaged.items() if key[:4] == "ema."}
    assert averages and averaged.keys() - plain.keys() == {f"ema.{name}" for name in averages}
    assert all(torch.equal(averaged[key], value) for key, value in plain.items())
    assert any(not torch.equal(v, plain[f"model.{name}"]) for name, v in averages.items())

    metrics = {
        name: json.loads((runs / name / "metrics.json").read_text()) for name in ("ema", "plain")
    }
    assert metrics["ema"] != metrics["plain"]
    assert evaluate_run(RunDir(runs / "ema"), None, []) == metrics["ema"]
    towers = FinishedRun.open(RunDir(runs / "ema")).towers.state_dict()
    for name, value in towers.items():
        key = f"towers.{name}"
        assert torch.equal(value, averages.get(key, averaged[f"model.{key}"])), name


def test_learning_rates_are_recorded(runs: Path) -> None:
    rates = [line["lr/ranking"] for line in log(runs / "ema") if "lr/ranking" in line]
    assert len(rates) == 16
    assert rates[:4] == pytest.approx([0.00025, 0.0005, 0.00075, 0.001])
    assert rates[4:] == sorted(rates[4:], reverse=True) and 0 < rates[-1] < 0.0001
    tables = {line["lr/tables"] for line in log(runs / "ema") if "lr/tables" in line}
    assert [*tables] == pytest.approx([0.02])


def test_a_run_without_averages_cannot_resume_with_them(runs: Path, tmp_path: Path) -> None:
    killed = as_killed(runs / "plain", tmp_path / "run", 10)
    with pytest.raises(ValueError, match=r"another configuration.*\n.*train\.ema"):
        train(config(runs, EMA), RunDir(killed), resume=True)


def test_a_resumed_run_may_freeze_and_say_what_more_epochs_do(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The state of what is frozen stays in the checkpoints, so that it may be trained again."""
    before = tensors(runs / "ema")
    folder = tmp_path / "run"
    as_killed(runs / "ema", folder, 16)
    train(config(runs, EMA | {"epochs": 3, "freeze": ["ranking"]}), RunDir(folder), resume=True)
    after = tensors(folder)
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert not any(
        key.startswith(("model.towers.ranking.", "optimizer.ranking.")) for key in changed
    )
    assert any(key.startswith("optimizer.zero_shot.") for key in changed)
    told = capsys.readouterr().err
    assert "cosine runs over 24 steps now instead of 16" in told

"""Whole runs with the multi-task head, and without it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.metrics.cohorts import CohortMetrics, EvaluatedRows
from mail_torchrec.metrics.details import DetailedMetrics
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import SCHEMA, config_tree, write_rows
from tests.train.test_trainer import weights


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train" / "a.parquet", 600, seed=1)
    write_rows(folder / "test" / "b.parquet", 400, seed=2)
    return folder


def run(
    root: Path, run_dir: Path, schema: dict[str, Any] = SCHEMA, epochs: int = 1, **model: Any
) -> dict[str, CohortMetrics]:
    rates = {"learning_rate": 0.01, "tables": {"learning_rate": 0.1}}
    tree = config_tree(root, schema=schema, train=rates | {"epochs": epochs})
    tree["model"] |= model
    return train(Config.model_validate(tree), RunDir(run_dir))


def log(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_conversions_are_learnt_beside_clicks(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = run(root, tmp_path / "run", epochs=4, multi_task={})
    first, *_, last = (line for line in log(tmp_path / "run") if "loss/L_rt" in line)
    assert {key for key in first if key.startswith("loss/")} == {
        f"loss/{name}" for name in ("L_rt", "L_ctcvr", "L_match", "L_a", "L_v", "L_d")
    }
    assert last["loss/L_ctcvr"] < first["loss/L_ctcvr"]
    for part in metrics.values():
        names = ("auc", "gauc", "log_loss", "normalised_entropy", "calibration")
        assert set(part) == {"rows", "users", "ctr"} | {
            f"{task}{metric}" for task in ("", "cvr_", "ctcvr_") for metric in names
        }
    assert metrics["all"]["cvr_auc"] > 0.65  # type: ignore[operator]
    assert metrics["all"]["ctcvr_auc"] > 0.6  # type: ignore[operator]
    assert (
        json.loads((tmp_path / "run/metrics.json").read_text())
        == metrics
        == evaluate_run(RunDir(tmp_path / "run"), None, [])
    )
    assert any(
        "unclicked/bought" in line["counts"] for line in log(tmp_path / "run") if "epoch" in line
    )
    assert (
        "test: conversions without a click, which count as none: bought " in capsys.readouterr().err
    )


def test_without_the_head_a_conversion_column_changes_no_bit(root: Path, tmp_path: Path) -> None:
    columns = {name: column for name, column in SCHEMA["columns"].items() if name != "bought"}
    with_column = run(root, tmp_path / "with")
    assert run(root, tmp_path / "without", schema=SCHEMA | {"columns": columns}) == with_column
    first, second = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert first.keys() == second.keys() and not any("multi_task" in key for key in first)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(name.startswith(("cvr_", "ctcvr_")) for name in with_column["all"])


@pytest.mark.parametrize(
    "tower", ["base_dnn", "deepfm", "tests.support.towers_of_users:RepresentingTower"]
)
def test_any_tower_that_gives_a_representation_takes_the_head(
    root: Path, tmp_path: Path, tower: str
) -> None:
    metrics = run(
        root,
        tmp_path / "run",
        tower=tower,
        tower_options={},
        zero_shot=None,
        multi_task={"hidden_dims": []},
    )
    assert metrics["all"]["ctcvr_auc"] is not None
    assert weights(tmp_path / "run")["towers.multi_task.layers.0.weight"].shape[0] == 1


def test_the_metrics_are_of_what_they_are_called(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product is below both factors, and whoever converted clicked."""
    seen: list[EvaluatedRows] = []
    compute = DetailedMetrics.compute
    monkeypatch.setattr(
        DetailedMetrics,
        "compute",
        lambda self, rows, numbers: (seen.append(rows), compute(self, rows, numbers))[1],
    )
    run(root, tmp_path / "run", zero_shot=None, multi_task={})
    [rows] = seen
    found, clicks = rows.conversions, rows.labels_R
    assert found is not None and len(rows.users_R) == 400
    assert (found.ctcvr < np.minimum(rows.scores_R, found.cvr)).all()
    assert (found.labels <= clicks).all() and 0 < found.labels.sum() < clicks.sum()


def test_a_tower_that_gives_none_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"model.multi_task: tower 'tests.support.towers_of_users:MeanTower' gives no "
            r"representation"
        ),
    ):
        run(
            root,
            tmp_path / "run",
            tower="tests.support.towers_of_users:MeanTower",
            tower_options={},
            multi_task={},
        )


def test_the_head_needs_a_conversion_column(root: Path, tmp_path: Path) -> None:
    columns = {name: column for name, column in SCHEMA["columns"].items() if name != "bought"}
    with pytest.raises(
        ValueError,
        match=(
            r"model.multi_task needs a column of group 'conversion' in schema.columns .*found "
            r"none; add it, or"
        ),
    ):
        run(root, tmp_path / "run", schema=SCHEMA | {"columns": columns}, multi_task={})

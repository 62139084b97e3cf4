"""The command line as a user sees it."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.predictions.predictions import Predictions
from tests.support.processes import Ended, without_launcher
from tests.support.small_rows import config_tree, write_rows


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows/train/a.parquet", 120, seed=1)
    write_rows(tmp_path / "rows/test/b.parquet", 101, seed=2)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config_tree(tmp_path / "rows")))
    return tmp_path / "small.yaml"


def test_help_teaches_by_example() -> None:
    text = CliRunner().invoke(main, ["train", "--help"]).output
    assert "torchrun --nproc-per-node 2 -m mail_torchrec train --config FILE --run-dir DIR" in text
    for command in ("train", "evaluate", "synthesize", "compare", "doctor"):
        assert command in CliRunner().invoke(main, ["--help"]).output


def test_print_config_shows_overrides_among_options_in_any_order(config: Path) -> None:
    result = CliRunner().invoke(
        main,
        [
            "train",
            "--config",
            str(config),
            "train.epochs=3",
            "--print-config",
            "model.zero_shot=null",
        ],
    )
    tree = yaml.safe_load(result.output)
    assert (
        tree["train"]["epochs"] == 3
        and tree["model"]["zero_shot"] is None
        and tree["schema"]["dim"] == 8
    )


def test_a_user_error_is_one_message_without_a_traceback(config: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main,
        ["train", "--config", str(config), "--run-dir", str(tmp_path / "run"), "train.epoch=3"],
    )
    assert result.exit_code == 1
    assert (
        result.output.startswith("Error: ")
        and "train.epoch: unknown key; known here: " in result.output
        and ", epochs, " in result.output
    )
    assert "Traceback" not in result.output


def test_traceback_shows_where(config: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main,
        [
            "--traceback",
            "train",
            "--config",
            str(config),
            "--run-dir",
            str(tmp_path / "run"),
            "train.epoch=3",
        ],
    )
    assert isinstance(result.exception, ValueError)


@pytest.mark.distributed
def test_two_ranks_train_and_any_number_of_ranks_evaluates_to_the_same_metrics(
    config: Path, tmp_path: Path
) -> None:
    """101 test rows: the ranks' shares are uneven."""
    run_dir = tmp_path / "run"
    arguments = [
        "train",
        "--config",
        str(config),
        "--run-dir",
        str(run_dir),
        "sharding.sharding_types=[row_wise]",
    ]
    first, _ = without_launcher(2, *arguments)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert printed(first) == {"small": metrics}
    assert metrics["all"]["rows"] == 101
    rows = pq.read_table(tmp_path / "rows/test")
    for num in (1, 3):
        words = ["evaluate", "--run-dir", str(run_dir), "--data", str(tmp_path / "rows/test")]
        words += ["--predictions", str(tmp_path / "scores"), "--overwrite"]
        words += ["train.eval_batch_size=7"]
        again = printed(without_launcher(num, *words)[0])
        found = Predictions.load(tmp_path / "scores")
        assert found.labels_R.tolist() == rows["clicked"].to_pylist()
        assert found.users_R.tolist() == rows["user"].to_pylist()
        for part in ("new", "old", "all"):
            assert again[part] == pytest.approx(metrics[part], abs=1e-6)
    compared = CliRunner().invoke(main, ["compare", str(run_dir), "--out", str(tmp_path / "out")])
    assert (
        f"{metrics['new']['auc']:.4f}" in compared.output and "loss_curves.png" in compared.output
    )
    assert (tmp_path / "out/comparison.png").stat().st_size


@pytest.mark.distributed
def test_an_error_on_one_rank_ends_all(config: Path, tmp_path: Path) -> None:
    words = ["train", "--config", str(config), "--run-dir", str(tmp_path / "run")]
    for ended in without_launcher(2, *words, "sharding.constraints.itme.sharding_types=[row_wise]"):
        assert ended.code == 1
        assert "Error: sharding.constraints: no table is called ['itme']" in ended.output


def printed(ended: Ended) -> dict[str, Any]:
    """The metrics that a command printed."""
    assert ended.code == 0, ended.output
    found: dict[str, Any] = json.loads(ended.output[ended.output.rindex("\n{") :])
    return found

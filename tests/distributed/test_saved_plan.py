"""Training by a saved plan: the same figures as by the planner's own; a run beside its estimate."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import load_config
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.small_rows import config_tree, write_rows
from tests.test_cli import ranks

pytestmark = pytest.mark.distributed
ROWS = [word for table in ("age", "city", "hour", "item", "actions", "tags") for word in ("--rows", f"{table}=40")]


def run(*words: str) -> str:
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def test_a_saved_plan_trains_as_the_planners_own_and_is_refused_elsewhere(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows/train/a.parquet", 120, seed=1)
    write_rows(tmp_path / "rows/test/b.parquet", 60, seed=2)
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(config_tree(tmp_path / "rows", train={"batch_size": 16})))
    asked = ["plan", "--config", str(config), "--hardware", "cpu", "--ranks", "2", *ROWS]
    run(*asked, "--out", str(tmp_path / "plans"))
    run(*asked, "--out", str(tmp_path / "others"), "sharding.types=[table_wise]")
    plan, other = tmp_path / "plans/plan.json", tmp_path / "others/plan.json"
    assert plan.read_text() != other.read_text()

    figures: dict[str, Any] = {}
    for name, words in (("own", []), ("saved", ["--plan", str(plan)]), ("other", ["--plan", str(other)])):
        ranks(2, "train", "--config", str(config), "--run-dir", str(tmp_path / name), *words)
        figures[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    assert figures["own"] == figures["saved"]
    for part, figure in figures["other"].items():
        assert figure == pytest.approx(figures["own"][part], abs=1e-3)
    # What `plan` writes is what a run leaves: this command and training plan alike.
    assert (tmp_path / "own/plan.json").read_text() == (tmp_path / "saved/plan.json").read_text() == plan.read_text()
    assert (tmp_path / "other/plan.json").read_text() == other.read_text()

    with pytest.raises(ValueError, match=r"was made for world size 2, this job has 1 ranks"):
        train(load_config(config, []), RunDir(tmp_path / "alone"), plan)
    with pytest.raises(ValueError, match=r"'item' of 1,024 x 8, here it has 1,024 x 16"):
        train(load_config(config, ["schema.dim=16"]), RunDir(tmp_path / "wider"), plan)
    with pytest.raises(ValueError, match=r"sharding.enabled=false keeps whole tables, which need no plan"):
        train(load_config(config, ["sharding.enabled=false"]), RunDir(tmp_path / "whole"), plan)

    check_comparison(run("plan", "--compare", str(tmp_path / "other")), tmp_path / "other")


def check_comparison(text: str, run_dir: Path) -> None:
    """Tables' bytes are known exactly, so that estimate and measurement are the same; time and the peak are estimates."""
    lines = {cells[1].strip(): cells[2:4] for cells in (line.split("|") for line in text.splitlines() if line.startswith("| "))}
    for part in ("table weights, fullest rank", "optimizer state, fullest rank"):
        estimate, measured = lines[part]
        assert estimate.strip() == measured.strip() != "", lines
    assert {"ms a step", "rows/s"} < lines.keys() and any(name.startswith("peak memory") for name in lines)
    usages = [json.loads(line)["usage"] for line in (run_dir / "metrics.jsonl").read_text().splitlines() if '"usage"' in line]
    assert len(usages) == 1 and len(usages[0]["peak"]) == 2 and min(usages[0]["peak"]) > 10**7

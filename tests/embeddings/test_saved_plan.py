"""Training by a saved plan: the losses of the planner's own plan, and the run's estimate."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import load_config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.train.assembly import assemble
from mail_torchrec.train.data_splits import negative_samplers
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.ranks import run_ranks
from tests.support.small_rows import config_tree, write_rows

pytestmark = pytest.mark.distributed
ROWS = [
    word
    for table in ("age", "city", "hour", "item", "actions", "tags")
    for word in ("--rows", f"{table}=40")
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows/train/a.parquet", 120, seed=1)
    write_rows(tmp_path / "rows/test/b.parquet", 60, seed=2)
    (tmp_path / "small.yaml").write_text(
        yaml.safe_dump(config_tree(tmp_path / "rows", train={"batch_size": 16, "log_every": 1}))
    )
    return tmp_path / "small.yaml"


def run(*words: str) -> str:
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def saved_plan(config: Path, ranks: int, folder: Path, *overrides: str) -> Path:
    run(
        "plan",
        "--config",
        str(config),
        "--hardware",
        "cpu",
        "--ranks",
        str(ranks),
        *ROWS,
        "--out",
        str(folder),
        *overrides,
    )
    return folder / "plan.json"


def losses_by_plan(config: Path, plans: dict[str, Path | None]) -> dict[str, Any]:
    """Each plan's own text and the ranking losses of four steps, or the error."""
    settings = load_config(config, [])
    source = Source(settings.data.path("train"), settings.schema_)
    encoders = fit_encoders(source, settings.schema_, settings.data.cold_start)
    found: dict[str, Any] = {}
    for name, plan in plans.items():
        try:
            assembled = assemble(settings, encoders, torch.device("cpu"), plan)
        except ValueError as error:
            found[name] = str(error)
            continue
        reader = Reader(
            source, settings.schema_, encoders, assembled.feature_tables, settings.data,
            rank_info=RankInfo(dist.get_rank(), dist.get_world_size()),
            batch_size=8, shuffle=True, seed=3,
            samplers=negative_samplers(settings, encoders, assembled.feature_tables),
        )  # fmt: skip
        batches = iter(reader)
        found[name] = (
            assembled.plan_file,
            [float(assembled.pipeline.progress(batches).losses["L_rt"]) for _ in range(4)],
        )
    return found


def test_a_saved_plan_trains_as_the_planners_own_and_is_refused_on_every_rank_elsewhere(
    config: Path, tmp_path: Path
) -> None:
    plans: dict[str, Path | None] = {
        "own": None,
        "saved": saved_plan(config, 2, tmp_path / "saved"),
        "other": saved_plan(config, 2, tmp_path / "other", "sharding.sharding_types=[table_wise]"),
        "of 4": saved_plan(config, 4, tmp_path / "of4", "sharding.sharding_types=[table_wise]"),
    }
    for found in run_ranks(2, losses_by_plan, tmp_path / "ranks", config, plans):
        text, losses = found["own"]
        # `mail-torchrec plan` and training write the same plan.
        assert (
            found["saved"] == (text, losses) and text == (tmp_path / "saved/plan.json").read_text()
        )
        other_text, other_losses = found["other"]
        assert other_text == (tmp_path / "other/plan.json").read_text() != text
        assert other_losses == pytest.approx(losses, abs=1e-5)
        assert "was made for world size 4, this job has 2 ranks" in found["of 4"]


def test_a_run_by_a_saved_plan_stands_beside_its_estimate(config: Path, tmp_path: Path) -> None:
    plan = saved_plan(config, 1, tmp_path / "plan", "sharding.sharding_types=[row_wise]")
    run("train", "--config", str(config), "--run-dir", str(tmp_path / "run"), "--plan", str(plan))
    assert (tmp_path / "run/plan.json").read_text() == plan.read_text()
    for override, message in (
        ("schema.dim=16", "'item' of 1,024 x 8, here it has 1,024 x 16"),
        ("train.tables.name=sgd", "was made for train.tables.name=adagrad, this job has sgd"),
        ("sharding.enabled=false", "sharding.enabled=false keeps whole tables, which need no plan"),
    ):
        with pytest.raises(ValueError, match=message):
            train(load_config(config, [override]), RunDir(tmp_path / override), plan)
    # The tables' bytes are known, so that estimate and measurement are the same; time and the peak
    # are estimates.
    text = run("plan", "--compare", str(tmp_path / "run"))
    lines = {
        cells[1].strip(): [cell.strip() for cell in cells[2:4]]
        for cells in (line.split("|") for line in text.splitlines())
    }
    assert (
        lines["table weights, fullest rank"]
        == lines["optimizer state, fullest rank"]
        == ["224 KiB"] * 2
    ), text  # 7 tables of 1,024 x 8
    assert {"ms a step", "rows/s", "peak memory, fullest rank (the whole process)"} < lines.keys()
    [usage] = [
        json.loads(line)["usage"]
        for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
        if '"usage"' in line
    ]
    assert len(usage["peak"]) == 1 and usage["peak"][0] > 10**8
    with pytest.raises(ValueError, match="ran on cpu, and --hardware h100 is cuda"):
        CliRunner().invoke(
            main,
            ["--traceback", "plan", "--compare", str(tmp_path / "run"), "--hardware", "h100"],
            catch_exceptions=False,
        )

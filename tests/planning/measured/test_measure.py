"""Plans measured on two ranks, and the machine: what is reported, and what survives a failure."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from scipy.stats import spearmanr

from mail_torchrec.cli import main
from mail_torchrec.embeddings.hardware import PRESETS
from mail_torchrec.embeddings.rates.hardware_file import HardwareFile
from mail_torchrec.planning.measured import calibration, fitting, lookup_rates, step_rates
from mail_torchrec.planning.measured.job import append_result, read_job
from mail_torchrec.planning.measured.launchers import TorchrunRanks, TorchxRanks
from mail_torchrec.planning.measured.measurements import spearman
from tests.embeddings.rates.test_shard_times import FILE
from tests.support.processes import under_torchrun
from tests.support.ranks import run_ranks
from tests.support.small_rows import config_tree

ROWS = {"age": 5, "city": 100, "hour": 24, "item": 3000, "actions": 9, "tags": 2000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measure")
    (folder / "small.yaml").write_text(yaml.safe_dump(config_tree(Path("nowhere"))))
    FILE.save(folder / "hardware.json")
    return folder


def words(folder: Path, out: str, *more: str) -> list[str]:
    given = ["--config", str(folder / "small.yaml"), "--hardware", str(folder / "hardware.json")]
    given += [word for table, rows in ROWS.items() for word in ("--rows", f"{table}={rows}")]
    return ["plan", *given, "--ranks", "2", "--measure", "2", "--out", str(folder / out), *more]


@pytest.mark.distributed
def test_plans_are_measured_on_ranks_beside_their_estimates(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: TorchrunRanks, started: list[str], log: Path) -> int:
        ended = under_torchrun(2, *started[started.index("plan") :])
        log.write_text(ended.output)
        return ended.code

    monkeypatch.setattr(TorchrunRanks, "start", start)
    vary = "sharding.sharding_types=[table_wise];[row_wise]"
    done = CliRunner().invoke(main, words(folder, "two", "--best", "1", "--vary", vary))
    assert done.exit_code == 0, done.output
    found = json.loads((folder / "two/measured.json").read_text())
    assert len(found["plans"]) == 2 and list(found["use"]) == ["2 x 32"]
    for plan in found["plans"]:
        assert [len(one["step_ms"]) for one in plan["passes"]] == [2, 2] and not plan["failure"]
        assert plan["step_ms"] > plan["passes"][0]["lookup_ms"] > 0
        assert plan["passes"][0]["communication_ms"] > 0 and plan["peak_bytes"] > 0
        # Weights and state are exact.
        assert plan["table_bytes"] == plan["estimated_table_bytes"]
        assert plan["published_ms"]["step"] < plan["estimate_ms"]["step"]
        assert json.loads(Path(plan["plan"]).read_text())["made_for"]["world_size"] == 2
    assert (folder / "two/measured.png").stat().st_size and "train --plan" in done.output


class FailingLauncher:
    """Measures every plan but one, which ends its ranks."""

    def __init__(self, bad: int) -> None:
        self._bad, self.jobs = bad, 0

    def run(self, folder: Path, world_size: int) -> str | None:
        self.jobs += 1
        for number, plan in enumerate(read_job(folder).plans):
            if plan.plan.startswith(f"plan-{self._bad}-"):
                return "rank 1 was killed"
            result = {"lookup_ms": 1, "communication_ms": 1, "peak": [9, 9]}
            of_tables = {"table_weights": [4, 4], "optimizer_state": [4, 4]}
            append_result(folder, {"name": plan.name, "step_ms": [5 + number]} | result | of_tables)
        return None


@pytest.mark.parametrize("bad", [1, 2])
def test_a_plan_that_ends_its_ranks_costs_no_other_its_measurement(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    launcher = FailingLauncher(bad)
    monkeypatch.setattr(
        "mail_torchrec.planning.measured.command.launcher_of", lambda *given: launcher
    )
    done = CliRunner().invoke(main, words(folder, f"failed{bad}", "--best", "3"))
    assert done.exit_code == 0 and "could not be measured: rank 1 was killed" in done.output
    plans = json.loads((folder / f"failed{bad}/measured.json").read_text())["plans"]
    assert [len(plan["passes"]) for plan in plans] == [
        0 if number == bad else 2 for number in range(3)
    ]
    assert launcher.jobs == 2
    # Named again for another job, it is refused with every difference.
    again = words(folder, "again", "--plan", plans[0]["plan"], "--batch-size", "64", "--ranks", "1")
    done = CliRunner().invoke(main, again)
    assert "was made for world size 2, this job has 1 ranks" in done.output


def test_plans_that_are_offered_differ_in_how_tables_are_cut(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = FailingLauncher(bad=99)
    monkeypatch.setattr(
        "mail_torchrec.planning.measured.command.launcher_of", lambda *given: launcher
    )
    # The narrowest column-wise shard says nothing of plans without one: they are measured once.
    more = ["--best", "50", "--vary", "sharding.min_partition=4;8"]
    done = CliRunner().invoke(
        main, words(folder, "kinds", *more, "sharding.sharding_types=[table_wise, row_wise]")
    )
    assert done.exit_code == 0 and "which were not measured again" in done.output, done.output
    plans = json.loads((folder / "kinds/measured.json").read_text())["plans"]
    kinds = []
    for plan in plans:
        [other] = plan["also"]
        assert "min_partition=4 #" in plan["name"] and "min_partition=8 #" in other
        tables = json.loads(Path(plan["plan"]).read_text())["tables"]
        kinds.append(tuple((name, tables[name]["sharding_type"]) for name in sorted(tables)))
    assert len(set(kinds)) == len(kinds) >= 4
    pairs = {("table_wise", "row_wise"), ("row_wise", "table_wise"), ("row_wise",) * 2}
    found = {(dict(kind)["tags"], dict(kind)["item"]) for kind in kinds}
    assert pairs | {("table_wise",) * 2} == found
    steps = [plan["estimate_ms"]["step"] for plan in plans]
    assert steps == sorted(steps)


@pytest.mark.parametrize(("more", "message"), [
    (["--ranks", "2,4"], "--ranks should be one number for --measure, received 2"),
    (["--job", "j=1x2"], "--job is for the jobs of a --scheduler"),
    (["--plan", "none.json"], "no plan at 'none.json'"),
    (["--scheduler", "moon"], "--scheduler should be one of"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_ranks_start(
    folder: Path, more: list[str], message: str
) -> None:
    done = CliRunner().invoke(main, words(folder, "refused", *more))
    assert done.exit_code != 0 and message in done.output, done.output


def test_ranks_do_not_start_ranks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(main, words(folder, "ranks"))
    assert "call them once, without torchrun" in done.output


def test_a_torchx_job_has_the_ranks_that_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--job j=1x4 should start 2 ranks, as --ranks says"):
        TorchxRanks("local_cwd", {"j": "1x4"}).run(tmp_path, 2)


@pytest.mark.distributed
def test_the_machine_is_measured_by_all_ranks(tmp_path: Path) -> None:
    first, second = run_ranks(2, _measured, tmp_path)
    assert first == second
    rates = HardwareFile.model_validate(first).rates
    assert rates.world_size == 2 and rates.all_to_all.ms(1e6) > 0 < rates.tower_tflops
    assert [size for size, _ in rates.all_reduce.measured] == [4096, 1048576]
    assert set(rates.lookups) == {"adagrad", "rowwise_adagrad"}
    for pooled in (rate.pooled for rate in rates.lookups.values()):
        assert pooled.fixed_ms + pooled.ms(1e6, 32, 1e6, 1e6) > 0 and len(pooled.measured) == 6
    # Steps of two groups of tables, and of five; more rows write more bytes.
    (two, of_two, small, _), (five, of_five, large, _) = rates.steps.measured
    assert (two, five) == (2, 5) and of_two == of_five > 50 and large > small > 0
    assert rates.steps.towers_ms(1000, 1e6) + rates.steps.ms_a_group > 0


def _measured() -> dict[str, Any]:
    calibration._COPY_BYTES, calibration._BYTES = 2**20, (2**12, 2**20)
    lookup_rates._LOOKUPS = ((1000, 64, 1), (1000, 512, 8), (200, 512, 1))
    step_rates.SHAPES = (
        step_rates.StepShape(8, 8, 2),
        step_rates.StepShape(16, 8, 2, is_cut=True),
    )
    return calibration.measure_machine(torch.device("cpu")).model_dump()


def test_rates_are_fitted_to_relative_errors_and_never_negative() -> None:
    random = np.random.default_rng(1)
    terms_PC = np.c_[np.ones(9), random.uniform(1, 1e4, (9, 2))]
    assert fitting.fit(terms_PC, terms_PC @ [2, 0, 0.5]) == pytest.approx([2, 0, 0.5])
    falling = fitting.fit(terms_PC[:, :2], 9e4 - 2 * terms_PC[:, 1])
    assert falling[1] == 0 and falling[0] > 0


def test_the_rank_correlation_is_spearman_s() -> None:
    random = np.random.default_rng(2)
    for _ in range(20):
        first, second = random.integers(0, 6, (2, 12)).astype(float)
        assert spearman(first.tolist(), second.tolist()) == pytest.approx(
            spearmanr(first, second).statistic
        )
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


@pytest.mark.parametrize("fixed_ms", [0.7, 3.0, 40.0])
def test_on_one_rank_a_step_costs_no_group_of_tables_a_wait(
    fixed_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans of one rank count no group, so what a step takes must not be theirs."""

    def measured(shape: Any, *_: Any) -> tuple[float, Any]:
        operators = 300 if shape.tower == "din" else 200
        step = SimpleNamespace(written_bytes=2e4 * shape.batch_size)
        cost = SimpleNamespace(operators=operators, step=lambda rows, ranks: step)
        parts = {"plan": SimpleNamespace(groups={1: {0}, 2: {0}}), "dense_cost": cost}
        ms = 5.0 + fixed_ms + 8 * operators / 1e3 + 0.25 * 2e4 * shape.batch_size / 1e6
        return ms, SimpleNamespace(step_time=SimpleNamespace(total=5.0), **parts)

    monkeypatch.setattr(step_rates, "_measure", measured)
    rates = step_rates.measure_steps(torch.device("cpu"), PRESETS["cpu"])
    assert rates.ms_a_group == pytest.approx(0, abs=1e-9)
    assert rates.towers_ms(250, 3e6) == pytest.approx(fixed_ms + 2 + 0.75)

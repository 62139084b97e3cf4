"""Real profiled runs: traces, table and figures, on one rank and on two, resumed, cut short."""

import gzip
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch.distributed as dist

from mail_torchrec.distributed.preemption import PreemptionHandler
from mail_torchrec.profiling import profiler
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.utils.spans import STEP_SPANS
from tests.checkpoint.test_resume import as_killed, assert_equal_runs, configuration, log
from tests.support.processes import free_port
from tests.support.ranks import run_ranks
from tests.support.small_rows import write_rows

PROFILED = {"train": {"profile": {"start": 9, "steps": 3}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train" / "a.parquet", 160, seed=1)
    write_rows(folder / "train" / "b.parquet", 90, seed=2)
    write_rows(folder / "test" / "c.parquet", 120, seed=3)
    return folder


@pytest.fixture(scope="module")
def plain(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "plain"
    train(configuration(root), RunDir(path))
    return path


def steps_of(trace: Path) -> list[str]:
    """The steps in a trace, which has all named spans."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert set(STEP_SPANS) <= set(names)
    assert any(event.get("cat") == "cpu_op" for event in events)
    return sorted({name for name in names if name.startswith("step ")})


def check_table(folder: Path, ranks: int, first: int, last: int) -> None:
    table = json.loads((folder / "table.json").read_text())
    assert (table["ranks"], table["first_step"], table["last_step"]) == (ranks, first, last)
    rows = {row["span"]: row for row in table["spans"]}
    assert rows.keys() == {*STEP_SPANS, "step"}
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert all(0 < row["self_seconds"] <= row["total_seconds"] for row in rows.values())
    assert rows["step"]["calls"] == 1 and "| lookup |" in (folder / "table.md").read_text()


def test_a_profiled_run_has_trace_and_table_and_the_same_figures(
    root: Path, plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(configuration(root, **PROFILED), RunDir(tmp_path / "run"))
    assert_equal_runs(plain, tmp_path / "run")
    folder = tmp_path / "run/profile"
    assert steps_of(folder / "trace-rank-0.json.gz") == ["step 10", "step 11", "step 9"]
    check_table(folder, 1, 9, 11)
    said = capfd.readouterr().err
    assert "| lookup |" in said and "USDT" not in said
    assert sum("the training was bounded by" in line for line in said.splitlines()) == 1
    assert not (plain / "profile").exists()


def test_every_run_records_where_its_time_went(plain: Path) -> None:
    lines = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    [found] = [line["step_time"] for line in lines if "step_time" in line]
    assert found["steps"] == 13  # without the first three of the process
    assert found["seconds"] > 0 and sum(found["shares"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("start", "step", "said"),
    [
        (9, 10, "this run has steps 11 to 11 of them"),
        (4, 10, "were done before this run resumed"),
        (15, 10, "this run has steps 15 to 16 of them"),
        (17, 10, "are behind the last of this run, 16"),
    ],
)
def test_a_resumed_run_profiles_the_steps_that_it_has(
    root: Path,
    plain: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    start: int,
    step: int,
    said: str,
) -> None:
    killed = as_killed(plain, tmp_path / "run", step)
    train(
        configuration(root, train={"profile": {"start": start, "steps": 3}}),
        RunDir(killed),
        resume=True,
    )
    assert_equal_runs(plain, killed)
    assert said in capfd.readouterr().err
    if "steps 11" in said or "steps 15" in said:
        first, last = (11, 11) if "steps 11" in said else (15, 16)
        check_table(killed / "profile", 1, first, last)
    else:
        assert not (killed / "profile").exists()


def test_a_run_that_is_told_to_stop_amid_the_steps_keeps_their_trace(
    root: Path, plain: Path, tmp_path: Path
) -> None:
    config = configuration(root, **PROFILED)
    run_dir = RunDir(tmp_path / "run")
    answers = iter([False] * 9 + [True])
    with (
        patch.object(PreemptionHandler, "should_stop", lambda self: next(answers)),
        patch.object(PreemptionHandler, "exit_code", 143),
        pytest.raises(SystemExit),
    ):
        train(config, run_dir)
    assert steps_of(run_dir.profile / "trace-rank-0.json.gz") == ["step 10", "step 9"]
    train(config, run_dir, resume=True)
    assert_equal_runs(plain, run_dir.path)
    check_table(run_dir.profile, 1, 11, 11)


def test_a_disk_that_takes_no_trace_ends_no_run(
    root: Path, plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with patch.object(profiler, "write_file", side_effect=OSError(28, "No space left on device")):
        train(configuration(root, **PROFILED), RunDir(tmp_path / "run"))
    assert_equal_runs(plain, tmp_path / "run")
    assert "trace of the profiled steps could not be written" in capfd.readouterr().err


def two_runs(root: str, folder: str, ports: list[str]) -> None:
    """Trains a profiled run and a plain one, on these ranks."""
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    sections: dict[str, dict[str, Any]] = {"train": {"profile": {"start": 5, "steps": 2}}}
    for name, changed, port in (("with", sections, ports[0]), ("without", {}, ports[1])):
        os.environ["MASTER_PORT"] = port
        train(configuration(Path(root), **changed), RunDir(Path(folder) / name))
    os.environ["MASTER_PORT"] = ports[2]
    dist.init_process_group("gloo")


@pytest.mark.distributed
def test_two_ranks_write_a_trace_each_and_one_table(root: Path, tmp_path: Path) -> None:
    ports = [str(free_port()) for _ in range(3)]
    run_ranks(2, two_runs, tmp_path / "ranks", str(root), str(tmp_path), ports)
    assert_equal_runs(tmp_path / "with", tmp_path / "without")
    assert log(tmp_path / "with")[-1]["evaluation"]
    folder = tmp_path / "with/profile"
    for rank in range(2):
        assert steps_of(folder / f"trace-rank-{rank}.json.gz") == ["step 5", "step 6"]
    check_table(folder, 2, 5, 6)

"""Signals to stop: when a process is told once, twice, or the same thing twice."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from mail_torchrec.distributed import preemption
from mail_torchrec.distributed.preemption import PreemptionHandler
from mail_torchrec.train.metrics_writer import MetricsWriter
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.checkpoint.test_resume import assert_equal_runs, at_steps, configuration
from tests.support.preloaded import PreloadedProcess
from tests.support.processes import free_port
from tests.support.ranks import run_ranks
from tests.support.small_rows import write_rows

_HOUR = 3600.0


def signalled(folder: str, numbers: list[int], same: float, launcher: bool, grace: float) -> None:
    """A process whose main thread runs no Python while the signals come."""
    os.environ.pop("TORCHELASTIC_RUN_ID", None)
    if launcher:
        os.environ["TORCHELASTIC_RUN_ID"] = "none"
    preemption._SAME_SECONDS = same
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    log = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    with PreemptionHandler(grace, _HOUR, lambda: (12, 9)) as handler:
        for number in numbers:
            os.kill(os.getpid(), number)
            if number != signal.SIGHUP:
                while not handler.should_stop():
                    time.sleep(0.01)
        if not grace:
            dist.HashStore().wait(["nothing"])  # as in a collective: for minutes
        time.sleep(0.3)
    Path(folder, "code").write_text(str(handler.exit_code))
    sys.exit(0)


INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize(
    ("numbers", "same", "launcher", "grace", "code", "said"),
    [
        ([INT, INT], 0, False, _HOUR, 130, "interrupted again, exiting at once: 3 steps are lost"),
        ([INT, TERM], 0, True, _HOUR, 130, "--resume goes on after step 9"),
        ([INT], 0, False, 0.0, 130, "not done within checkpoint.grace=0 seconds; exiting all"),
        # Those that go on to save:
        ([INT, INT], 60, False, _HOUR, None, "(SIGINT): saving after this step; Ctrl-C again"),
        ([INT, TERM], 0, False, _HOUR, None, "(SIGINT): saving after this step"),
        ([TERM, TERM, INT], 0, True, _HOUR, None, "told to stop (SIGTERM): saving after this step"),
        ([HUP, TERM], 0, False, _HOUR, None, "told to stop (SIGTERM)"),
    ],
)
def test_who_insists_leaves_at_once_and_is_told_what_is_lost(
    tmp_path: Path,
    numbers: list[int],
    same: float,
    launcher: bool,
    grace: float,
    code: int | None,
    said: str,
) -> None:
    process = PreloadedProcess(signalled, (str(tmp_path), numbers, same, launcher, grace))
    process.start()
    process.join(60)
    text = (tmp_path / "log").read_text()
    assert said in text
    assert process.exitcode == (code or 0), text
    first = numbers[0] if numbers[0] != HUP else TERM
    assert code or (tmp_path / "code").read_text() == str(128 + first)


def stopped_and_resumed(root: str, folder: str, ports: list[str]) -> None:
    """Trains a run, and another one whose second rank is interrupted after 7 of its steps."""
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = configuration(Path(root), checkpoint={"every": 0})
    os.environ["MASTER_PORT"] = ports[0]
    train(config, RunDir(Path(folder) / "straight"))
    os.environ["MASTER_PORT"] = ports[1]
    original = MetricsWriter.record_step
    if rank == world - 1:
        interrupts = at_steps({7: lambda: os.kill(os.getpid(), signal.SIGINT)})
        MetricsWriter.record_step = interrupts  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as stopped:
        train(config, RunDir(Path(folder) / "stopped"))
    assert stopped.value.code == 130
    MetricsWriter.record_step = original  # type: ignore[method-assign]
    os.environ["MASTER_PORT"] = ports[2]
    train(config, RunDir(Path(folder) / "stopped"), resume=True)
    os.environ["MASTER_PORT"] = ports[3]
    dist.init_process_group("gloo")


@pytest.mark.distributed
@pytest.mark.slow
def test_an_interrupt_of_one_of_two_ranks_saves_both_and_they_end_as_if_never_stopped(
    tmp_path: Path,
) -> None:
    write_rows(tmp_path / "rows/train/a.parquet", 250, seed=1)
    write_rows(tmp_path / "rows/test/b.parquet", 60, seed=2)
    ports = [str(free_port()) for _ in range(4)]
    words = (str(tmp_path / "rows"), str(tmp_path), ports)
    run_ranks(2, stopped_and_resumed, tmp_path / "ranks", *words)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")

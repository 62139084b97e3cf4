"""Runs on several ranks, stopped and resumed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
import torch.distributed as dist
import yaml

from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.checkpoint.test_resume import (
    OPTIMIZATION,
    as_killed,
    assert_equal_runs,
    configuration,
    log,
    tensors,
)
from tests.support.preloaded import ROOT, PreloadedProcess, torchrun
from tests.support.processes import free_port, without_launcher
from tests.support.ranks import run_ranks
from tests.support.small_rows import write_rows

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def straight_and_resumed(root: str, folder: str, ports: list[str]) -> None:
    """Trains a run, and resumes a copy of it after 10 of its steps."""
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    config = configuration(Path(root), train=OPTIMIZATION)
    for name, resume, port in (("straight", False, ports[0]), ("killed", True, ports[1])):
        os.environ["MASTER_PORT"] = port
        if resume:
            if rank == 0:
                as_killed(Path(folder) / "straight", Path(folder) / "killed", 5)
            else:
                while not (Path(folder) / "killed/checkpoints/.step-00000010.partial").exists():
                    time.sleep(0.05)
        train(config, RunDir(Path(folder) / name), resume=resume)
    os.environ["MASTER_PORT"] = ports[2]
    dist.init_process_group("gloo")


def test_two_ranks_end_as_if_never_stopped(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows/train/a.parquet", 250, seed=1)
    write_rows(tmp_path / "rows/test/b.parquet", 60, seed=2)
    ports = [str(free_port()) for _ in range(3)]
    run_ranks(
        2, straight_and_resumed, tmp_path / "ranks", str(tmp_path / "rows"), str(tmp_path), ports
    )
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert_equal_runs(straight, killed)
    assert {"random.0.cpu", "random.1.cpu"} <= tensors(straight).keys()
    accumulated = [key for key in tensors(straight) if key.startswith("gradient.")]
    assert {key.split(".")[1] for key in accumulated} == {"0", "1"}
    # One rank goes on with what two had not read: each row of the epoch once.
    alone = as_killed(straight, tmp_path / "alone", 5)
    train(configuration(tmp_path / "rows", train=OPTIMIZATION), RunDir(alone), resume=True)
    counts = [
        [line["counts"] for line in log(path) if "epoch" in line] for path in (straight, alone)
    ]
    assert counts[0] == counts[1]
    assert log(alone)[-1]["step"] > log(straight)[-1]["step"]


class ForkedTorchrun:
    """torchrun whose ranks are forks, with some methods of ``subprocess.Popen``."""

    def __init__(self, command: list[str], log: IO[bytes]) -> None:
        streams = (log.fileno(), log.fileno())
        words = command[1:]
        self._process = PreloadedProcess(torchrun, (words, str(ROOT)), None, *streams)
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode

    def signal(self, number: int) -> None:
        """Sends a signal to torchrun alone, as a cluster does."""
        os.kill(self._process.pid or 0, number)


class Torchrun(subprocess.Popen[bytes]):
    """torchrun and its ranks, fresh interpreters."""

    def __init__(self, command: list[str], log: IO[bytes]) -> None:
        super().__init__(command, stdout=log, stderr=log, start_new_session=True)

    def signal(self, number: int) -> None:
        """Sends a signal to all of them, as Ctrl-C does in a terminal."""
        os.killpg(self.pid, number)


@pytest.mark.parametrize(
    ("launcher", "number", "num_ranks"),
    [
        (ForkedTorchrun, signal.SIGTERM, 2),
        pytest.param(Torchrun, signal.SIGTERM, 2, marks=pytest.mark.long),
        pytest.param(Torchrun, signal.SIGINT, 2, marks=pytest.mark.long),
    ],
)
def test_torchrun_hands_a_signal_on_and_every_rank_ends_as_if_never_stopped(
    tmp_path: Path,
    launcher: type[ForkedTorchrun | Torchrun],
    number: signal.Signals,
    num_ranks: int,
) -> None:
    """With reader processes, which torchrun signals as well; the run goes on without them."""
    write_rows(tmp_path / "rows/train/a.parquet", 2000, seed=1)
    write_rows(tmp_path / "rows/test/b.parquet", 60, seed=2)
    root = tmp_path / "rows"
    config = configuration(
        root,
        data={"root": str(root), "num_workers": 1},
        checkpoint={"every": 3, "keep": 1},
        train={"epochs": 1},
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    words = [
        str(Path(sys.executable).with_name("torchrun")),
        "--standalone",
        "--nproc-per-node",
        str(num_ranks),
        "-m",
        "mail_torchrec",
        "train",
    ]
    command = [*words, "--config", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "run")]
    checkpoints = RunDir(tmp_path / "run").checkpoints
    with (tmp_path / "log").open("wb") as output:
        started = launcher(command, output)
        try:
            deadline = time.monotonic() + 240
            while (
                not checkpoints.published()
                and started.poll() is None
                and time.monotonic() < deadline
            ):
                time.sleep(0.05)
            started.signal(number)
            assert started.wait(120) != 0
        finally:
            if started.poll() is None:
                started.signal(signal.SIGKILL)
    text = (tmp_path / "log").read_text()
    [step] = re.findall(r"told to stop: saved after step (\d+)", text)
    assert checkpoints.published()[-1].name == f"step-{int(step):08d}", text
    assert not RunDir(tmp_path / "run").metrics.exists()
    resume = [*command[len(words) - 1 :], "--resume", "data.num_workers=0", "checkpoint.every=0"]
    ranks = without_launcher(num_ranks, *resume)
    assert {rank.code for rank in ranks} == {0}, ranks
    assert f"going on after step {step}, in epoch 1" in ranks[0].output
    if number == signal.SIGINT:
        straight = [
            str(tmp_path / "straight") if word == str(tmp_path / "run") else word for word in resume
        ]
        assert {rank.code for rank in without_launcher(num_ranks, *straight)} == {0}
        assert_equal_runs(tmp_path / "straight", tmp_path / "run")

"""Processes that are killed or stopped: nothing of a job outlives it, and nobody waits in vain."""

import multiprocessing
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from mail_torchrec.checkpoint.folder import Checkpoints
from mail_torchrec.checkpoint.manifest import RankProgress
from mail_torchrec.checkpoint.saver import CheckpointSaver
from mail_torchrec.checkpoint.settings import CheckpointSettings
from mail_torchrec.checkpoint.writer import Snapshot
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.distributed.reader_processes import ReaderProcesses, start_fork_server
from mail_torchrec.distributed.watchdog import LostRankError
from tests.support.preloaded import PreloadedProcess
from tests.support.processes import free_port, start
from tests.support.small_rows import config_tree, write_rows
from tools.marked_processes import Mark, fork_server_pids, reader_pids
from tools.torchrun_job import TorchrunJob

pytestmark = pytest.mark.distributed
_SECONDS = 60


class Training:
    """A training of one rank with two reader processes, which goes on until something happens."""

    def __init__(self, folder: Path, timeout: float) -> None:
        write_rows(folder / "rows/train/a.parquet", 400, seed=1)
        data = {"root": str(folder / "rows"), "test": "train", "num_workers": 2}
        settings = {"batch_size": 8, "epochs": 10_000, "log_every": 1, "timeout": timeout}
        model = {"zero_shot": None}
        tree = config_tree(folder / "rows", data=data, train=settings, model=model)
        (folder / "c.yaml").write_text(yaml.safe_dump(tree))
        self.mark, self.log = Mark(), folder / "log"
        words = ["--config", str(folder / "c.yaml"), "--run-dir", str(folder / "run")]
        self.rank = start(["train", *words], self.log, os.environ | self.mark.environment)
        metrics = folder / "run/metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()) and self.rank.exitcode is None:
            time.sleep(0.02)

    def readers(self) -> list[int]:
        """Waits for the reader processes of an epoch."""
        while len(found := reader_pids(self.mark.alive())) < 2:
            assert self.rank.exitcode is None, self.log.read_text()
        return found

    def end(self) -> None:
        """Kills what is left of it."""
        self.rank.kill()
        self.rank.join()
        for left in self.mark.alive():
            os.kill(left.pid, signal.SIGKILL)


def stop(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:  # the epoch is over
            continue


@pytest.mark.parametrize("stopped", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_killed_rank_leaves_no_process_behind_not_even_stopped_ones(
    tmp_path: Path, stopped: bool
) -> None:
    training = Training(tmp_path, timeout=600)
    try:
        training.readers()
        if stopped:
            stop(sorted(fork_server_pids(training.mark.alive())))
        alive = training.mark.alive()
        assert alive
        training.rank.kill()
        assert training.mark.wait_until_gone(alive, _SECONDS) == []
    finally:
        training.end()


@pytest.mark.slow
def test_a_stopped_reader_ends_its_run_with_its_name_on_one_rank_as_well(tmp_path: Path) -> None:
    training = Training(tmp_path, timeout=3)
    try:
        while training.rank.exitcode is None:  # once an epoch, until somebody waits for one of them
            stop(training.readers()[:1])
            training.rank.join(6)
            if training.rank.exitcode is None:
                stop(reader_pids(training.mark.alive()))
                training.rank.join(_SECONDS)
                break
        text = training.log.read_text()
        assert training.rank.exitcode == 1, text
        found = re.findall(
            r"^Error: waited 3 s \(train.timeout\) for data: reader process \d+ is stopped "
            r"\(SIGSTOP\).*; look after that file system or process, then --resume$",
            text,
            re.MULTILINE,
        )
        assert len(found) == 1 and "Traceback" not in text, text
        assert "WARNING: waiting for data" in text
        assert training.mark.wait_until_gone(training.mark.alive(), _SECONDS) == []
    finally:
        training.end()


def begin_a_reader_without_its_fork_server(folder: str) -> None:
    """Begins a reader process once the process that it is forked from has ended; its rank lives."""
    server = os.getpid()
    if os.fork():
        return
    while os.getppid() == server:
        time.sleep(0.01)
    (Path(folder) / "reader").write_text(str(os.getpid()))
    ReaderProcesses(1)(0)
    (Path(folder) / "reads").touch()
    os._exit(0)


def test_a_reader_that_begins_after_the_end_of_its_fork_server_ends(tmp_path: Path) -> None:
    server = PreloadedProcess(begin_a_reader_without_its_fork_server, (str(tmp_path),))
    server.start()
    server.join()
    assert server.exitcode == 0
    while not (tmp_path / "reader").exists() or not (tmp_path / "reader").read_text():
        time.sleep(0.01)
    while Path("/proc", (tmp_path / "reader").read_text(), "cmdline").exists():
        time.sleep(0.01)
    assert not (tmp_path / "reads").exists()


def stop_a_fork_at_once(folder: str) -> None:
    """A rank whose reader process is stopped before it has run any code of a reader."""
    start_fork_server([])
    context = multiprocessing.get_context("forkserver")
    fork = context.Process(target=signal.raise_signal, args=(signal.SIGSTOP,))
    fork.start()
    (Path(folder) / "fork").write_text(str(fork.pid))
    fork.join()


def test_a_reader_that_is_stopped_as_it_begins_is_killed_with_its_rank(tmp_path: Path) -> None:
    rank = PreloadedProcess(stop_a_fork_at_once, (str(tmp_path),))
    rank.start()
    while not (tmp_path / "fork").exists() or not (fork := (tmp_path / "fork").read_text()):
        time.sleep(0.01)
    stat = Path("/proc", fork, "stat")
    while ") T " not in stat.read_text():
        time.sleep(0.01)
    rank.kill()
    rank.join()
    end = time.monotonic() + 10
    while stat.exists() and time.monotonic() < end:
        time.sleep(0.01)
    if stat.exists():
        os.kill(int(fork), signal.SIGKILL)
        pytest.fail("it is alive")


def leave_a_stopped_fork() -> None:
    """A rank that has all rows and ends, while a reader process is stopped."""
    start_fork_server([])
    context = multiprocessing.get_context("forkserver")
    fork = context.Process(target=signal.raise_signal, args=(signal.SIGSTOP,), daemon=True)
    fork.start()
    while ") T " not in Path(f"/proc/{fork.pid}/stat").read_text():
        time.sleep(0.01)


def test_a_reader_that_is_stopped_after_its_last_row_does_not_hold_up_the_end() -> None:
    rank = PreloadedProcess(leave_a_stopped_fork, ())
    rank.start()
    rank.join(_SECONDS)
    code = rank.exitcode
    rank.kill()
    rank.join()
    assert code == 0


def save_beside_a_stopped_rank(rank: int, port: int, mode: str, folder: str) -> None:
    """Rank 1 is stopped, as if its host were lost; rank 0 saves a checkpoint with it."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    state, progress = {"weight": torch.zeros(8)}, RankProgress(losses={}, counts=[])
    snapshot = Snapshot(1, state, progress, lambda ranks: pytest.fail("it was published"), {})
    settings = CheckpointSettings.model_validate({"mode": mode})
    try:
        with process_group("cpu", timeout=3):
            saver = CheckpointSaver(Checkpoints(Path(folder)), settings, print, print, timeout=3)
            with saver:
                if rank == 1:
                    os.kill(os.getpid(), signal.SIGSTOP)
                saver.save(snapshot)
                saver.finish()
    except LostRankError as error:
        (Path(folder) / "error").write_text(str(error))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_rank_lost_during_a_save_ends_the_others_after_the_timeout(
    tmp_path: Path, mode: str
) -> None:
    words = (free_port(), mode, str(tmp_path))
    ranks = [PreloadedProcess(save_beside_a_stopped_rank, (rank, *words)) for rank in range(2)]
    try:
        for rank in ranks:
            rank.start()
        ranks[0].join(_SECONDS)
        assert ranks[0].exitcode == 0
        assert re.match(
            r"rank 0 waited 3 s \(train.timeout\) for other ranks .*: no answer from rank 1: ",
            (tmp_path / "error").read_text(),
        )
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", ["a rank", "stopped ranks", "torchrun", "a stopped reader"])
def test_no_process_of_two_ranks_outlives_its_attempt(tmp_path: Path, kind: str) -> None:
    write_rows(tmp_path / "rows/train/a.parquet", 4000, seed=1)
    job = TorchrunJob(tmp_path / "rows", tmp_path / "run", 2, tmp_path / "log", readers=1)
    model = {"zero_shot": None, "tower_options": {"hidden_dims": [16, 8]}}
    tree = config_tree(tmp_path, data={"test": "train"}, model=model)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    job.config = tmp_path / "c.yaml"
    job.start()
    try:
        while not (job.has_readers() and list(tmp_path.glob("run/checkpoints/step-*"))):
            assert job.process.poll() is None, job.log.read_text()
            time.sleep(0.05)
        # Raises where a process of the attempt is alive.
        assert job.kill(kind, random.Random(0)) == (kind in ("stopped ranks", "torchrun"))
        assert ("is stopped (SIGSTOP)" in job.log.read_text()) == (kind == "a stopped reader")
    finally:
        job.end()

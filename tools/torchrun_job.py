"""A training under torchrun that can be killed in several ways, for ``tools/soak.py``."""

import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tools.marked_processes import Mark, MarkedProcess, fork_server_pids, reader_pids
from tools.preloaded_torchrun import PreloadedTorchrun

ROOT = Path(__file__).parents[1]
SETTINGS = [
    "model.tower=base_dnn",
    "train.batch_size=32",
    "train.epochs=4",
    "train.log_every=5",
    "checkpoint.every=8",
    "checkpoint.keep=2",
    "train.timeout=10",
]
_GONE_SECONDS = 15
"""Within so many seconds of the end of torchrun nothing is left."""
_RESTART_SECONDS = 90
"""Within so many a restart has ended the attempt before: torchrun gives a stopped rank 30."""
_SIGTERM_SECONDS = 120


class LostError(AssertionError):
    """Something was lost."""


@dataclass
class TorchrunJob:
    """A training under torchrun, in a process group of its own."""

    world: Path
    run_dir: Path
    ranks: int
    log: Path
    readers: int = 0
    """Reader processes of each rank."""
    config: Path = ROOT / "launch/configs/synthetic.yaml"
    mark: Mark = field(default_factory=Mark)
    is_forked: bool = False
    """Whether torchrun and the ranks are forks of a process that has imported them. The mark is
    that of this process then."""
    process: subprocess.Popen[bytes] | PreloadedTorchrun = field(init=False)

    def start(self) -> None:
        """Starts the training, or resumes it."""
        launcher = ["--standalone", "--nproc-per-node", str(self.ranks), "--max-restarts", "9"]
        train = ["-m", "mail_torchrec", "train", "--config", str(self.config)]
        options = ["--run-dir", str(self.run_dir), "--resume", f"data.root={self.world}"]
        words = [*launcher, *train, *options, *SETTINGS, f"data.num_workers={self.readers}"]
        if self.is_forked:
            self.process = PreloadedTorchrun(words, self.log)
            return
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words],
            cwd=ROOT,
            env=child_environment() | self.mark.environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("ab"),
        )

    def rank_pids(self) -> list[int]:
        """Returns the processes of the ranks that are alive."""
        return [one.pid for one in self.mark.alive() if one.parent == self.process.pid]

    def has_readers(self) -> bool:
        """Returns whether any reader process is alive."""
        return bool(reader_pids(self.mark.alive()))

    def kill(self, kind: str, dice: random.Random) -> bool:
        """Kills the victim, and returns whether the job must be started again by hand.

        Raises:
            LostError: something of the attempt that was killed is alive afterwards.
        """
        attempt = self.mark.alive()
        must_start = self._kill(kind, dice, attempt)
        if must_start:
            self._assert_gone(None, _GONE_SECONDS, kind)
        else:
            launcher = self.process.pid
            of_ranks = [one for one in attempt if one.pid != launcher]
            self._assert_gone(of_ranks, _RESTART_SECONDS, kind)
        return must_start

    def _assert_gone(
        self, processes: list[MarkedProcess] | None, seconds: float, kind: str
    ) -> None:
        if left := self.mark.wait_until_gone(processes, seconds):
            raise LostError(f"{seconds} s after the end of {kind}, alive: {'; '.join(left)}")

    def _kill(self, kind: str, dice: random.Random, attempt: list[MarkedProcess]) -> bool:
        ranks, readers = self.rank_pids(), reader_pids(attempt)
        if kind == "a rank":
            _stop(dice.sample(readers, len(readers) // 2))
            os.kill(dice.choice(ranks), signal.SIGKILL)
            return False
        if kind == "a stopped reader":  # ends its rank, or at the end of an epoch nothing
            _stop(dice.sample(readers, min(1, len(readers))))
            return False
        if kind == "stopped ranks":
            _stop([*ranks, *fork_server_pids(attempt)])
            self.process.kill()
            self.process.wait()
        elif kind == "SIGTERM":
            self._terminate()
        elif kind == "torchrun":
            self.process.kill()
            self.process.wait()
        else:
            self.end()
        return True

    def end(self) -> None:
        """Kills torchrun first, which would restart its ranks, then the process group of each."""
        ranks = self.rank_pids()
        for leader in (self.process.pid, *ranks):
            try:
                os.killpg(leader, signal.SIGKILL)
            except ProcessLookupError:  # gone, or a fork that has no group of its own yet
                pass
        self.process.kill()
        self.process.wait()

    def _terminate(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(_SIGTERM_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise LostError("the job did not end within two minutes of SIGTERM") from error


def _stop(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:  # it has just ended
            pass


def child_environment() -> dict[str, str]:
    """Returns this process's environment, in which children find the package."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

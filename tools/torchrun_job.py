"""A training under torchrun that can be killed in several ways, for ``tools/soak.py``."""

import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = [
    "model.tower=base_dnn",
    "train.batch_size=32",
    "train.epochs=4",
    "train.log_every=5",
    "checkpoint.every=8",
    "checkpoint.keep=2",
]
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
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Starts the training, or resumes it."""
        python = [sys.executable, "-m", "torch.distributed.run"]
        launcher = ["--standalone", "--nproc-per-node", str(self.ranks), "--max-restarts", "9"]
        train = ["-m", "mail_torchrec", "train", "--config", "launch/configs/synthetic.yaml"]
        options = ["--run-dir", str(self.run_dir), "--resume", f"data.root={self.world}"]
        self.process = subprocess.Popen(
            [*python, *launcher, *train, *options, *SETTINGS],
            cwd=ROOT,
            env=child_environment() | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("ab"),
        )

    def rank_pids(self) -> list[int]:
        """Returns the processes of the ranks that are alive."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:  # the process has just ended
                continue
        return [pid for pid, parent in parents.items() if parent == self.process.pid]

    def kill(self, kind: str, dice: random.Random) -> bool:
        """Kills the victim, and returns whether the job must be started again by hand."""
        if kind == "a rank":
            os.kill(dice.choice(self.rank_pids()), signal.SIGKILL)
            return False
        if kind == "SIGTERM":
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
            except ProcessLookupError:
                pass
        self.process.wait()

    def _terminate(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(_SIGTERM_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise LostError("the job did not end within two minutes of SIGTERM") from error


def child_environment() -> dict[str, str]:
    """Returns this process's environment, in which children find the package."""
    return os.environ | {"PYTHONPATH": str(ROOT)}

"""Trials of a sweep as processes of this machine, or as jobs of a scheduler."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mail_torchrec.distributed.parent import PARENT_VARIABLE

_STOP_SECONDS = 30.0


@dataclass(frozen=True)
class TrialFiles:
    """Files of one trial, below ``trials/`` of the sweep."""

    path: Path
    """Folder of the trial."""

    @property
    def run_dir(self) -> Path:
        """Run directory of its training."""
        return self.path / "run"

    @property
    def output(self) -> Path:
        """Standard output and error of its training, where this machine runs it."""
        return self.path / "train.log"

    def delete_checkpoints(self) -> None:
        """Deletes what takes room: the tables of a trial that is not the best."""
        shutil.rmtree(self.run_dir / "checkpoints", ignore_errors=True)


class RunningTrial(Protocol):
    """A training that was started."""

    def exit_code(self) -> int | None:
        """Returns None while it runs; 0 where it ended well."""

    def stop(self) -> None:
        """Ends it, and returns when it has ended."""

    def reason(self) -> str:
        """Returns why it failed, in a line."""


class TrialLauncher(Protocol):
    """Starts trainings."""

    def start(self, files: TrialFiles, config: Path, overrides: Sequence[str]) -> RunningTrial:
        """Starts the training of a trial, or goes on with one that was stopped."""


class LocalLauncher:
    """Starts each training as a process of this machine.

    Args:
        threads: of each process.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def start(self, files: TrialFiles, config: Path, overrides: Sequence[str]) -> "LocalTrial":
        """Starts a process; it ends with this one."""
        words = [sys.executable, "-m", "mail_torchrec", "train", "--resume", "--config"]
        words += [str(config), "--run-dir", str(files.run_dir), *overrides]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self._threads),
            PARENT_VARIABLE: str(os.getpid()),
        }
        with files.output.open("ab") as output:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        return LocalTrial(process, files)


@dataclass(frozen=True)
class LocalTrial:
    """A training as a process of this machine."""

    process: "subprocess.Popen[bytes]"
    files: TrialFiles

    def exit_code(self) -> int | None:
        """Returns None while it runs, else its exit code."""
        return self.process.poll()

    def stop(self) -> None:
        """Ends the process: asks first, so that it saves its progress."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def reason(self) -> str:
        """Returns the last line that the training printed."""
        lines = self.files.output.read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "(no output)")

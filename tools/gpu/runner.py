"""Runs stages one after the other, each in a process of its own, within the time there is.

It imports no torch: a stage that takes its process down takes nothing else with it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.gpu.record import Outcome, Record, StageEnd

ROOT = Path(__file__).parents[2]
_MOUNTED, _DRIVER = Path("/usr/local/nvidia"), "libnvidia-ml.so.1"
_RESERVED_SECONDS = 4.0
"""For the end of the last stage's processes, and the verdict."""
_KILL_SECONDS = 10.0
"""Within so many a killed process is waited for; one that hangs in the driver never ends."""


@dataclass(frozen=True)
class Stage:
    """A stage and its share of the time."""

    name: str
    """Also its module in ``checks/``."""
    about: str
    limit: float
    """Seconds after which it is ended."""
    least: float
    """Seconds without which it is not begun."""


STAGES = (
    Stage("tables", "imports; each fused table optimizer against float64", 90, 15),
    Stage("resume", "a CPU checkpoint resumed on the GPU, and back", 75, 20),
    Stage("tests", "the tests marked gpu, but for those of UVM", 110, 20),
    Stage("waits", "operations of a step that wait for the GPU; compute-sanitizer", 110, 15),
    Stage("speed", "rows/s and memory by precision, readers, grouping", 180, 45),
    Stage("profile", "a trace, the GPU's idle share, the longest kernels", 60, 20),
    Stage("checkpoint", "how long training waits for one, and host memory", 60, 20),
    Stage("plan", "the planner's memory and time against the measured", 40, 12),
    Stage("compiled", "rows/s compiled, and as CUDA graphs", 180, 45),
    Stage("uvm", "tables in host memory; the last, for it can hang the GPU", 100, 25),
)
"""In this order."""


@dataclass(frozen=True)
class Runner:
    """Runs stages.

    Args:
        record: takes the results.
        log: file of all that the stages print.
        arguments: words of each stage's command behind its name.
        seconds: for all stages together, from the construction of the runner on.
        command: words that start a stage; the name, its seconds and the arguments follow.
    """

    record: Record
    log: Path
    arguments: tuple[str, ...]
    seconds: float
    started: float
    """On the clock of ``time.monotonic``."""
    patience: float = 1.0
    """Factor of all limits, for machines that do much else."""
    command: tuple[str, ...] = (sys.executable, "-m", "tools.gpu.stage")

    def run(self, stages: Sequence[Stage], on_end: Callable[[StageEnd], None]) -> None:
        """Runs what still fits, in order; each end is recorded and told at once."""
        for stage in stages:
            left = self.seconds - (time.monotonic() - self.started) - _RESERVED_SECONDS
            if left < stage.least:
                reason = f"{max(left, 0):.0f} s were left, it needs {stage.least:.0f}"
                end = StageEnd(stage.name, "skipped", 0.0, reason)
            else:
                end = self._run(stage, min(stage.limit * self.patience, left))
            self.record.add(end)
            on_end(end)

    def _run(self, stage: Stage, limit: float) -> StageEnd:
        start = time.monotonic()
        with self.log.open("ab") as log:
            log.write(f"\n=== {stage.name}, at most {limit:.0f} s\n".encode())
            log.flush()
            begin = log.tell()
            process = subprocess.Popen(
                [*self.command, stage.name, f"{limit:.1f}", *self.arguments],
                cwd=ROOT,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        outcome, text = self._wait(process, limit, begin)
        return StageEnd(stage.name, outcome, time.monotonic() - start, text)

    def _wait(
        self, process: subprocess.Popen[bytes], limit: float, begin: int
    ) -> tuple[Outcome, str]:
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            hung = "" if _kill(process) else "; it hangs even so, and may hold the GPU"
            return "out of time", f"ended after {limit:.0f} s{hung}"
        except BaseException:
            _kill(process)
            raise
        _kill(process)  # what it left running would be measured with the next stage
        if status:
            return "failed", f"exit status {status}: {_last_line(self.log, begin)}"
        return "done", ""


def _environment() -> dict[str, str]:
    """Returns the environment of a stage.

    It finds this tree first, and the driver's library that FBGEMM is linked with, which containers
    mount where the loader does not look.
    """
    found = os.environ | {"PYTHONUNBUFFERED": "1"}
    found["PYTHONPATH"] = os.pathsep.join([str(ROOT), *_given("PYTHONPATH")])
    drivers = [str(folder.parent) for folder in _MOUNTED.glob(f"*/{_DRIVER}")]
    if drivers:
        found["LD_LIBRARY_PATH"] = os.pathsep.join([*_given("LD_LIBRARY_PATH"), *drivers])
    return found


def _given(name: str) -> list[str]:
    """Returns a path of the environment; empty parts would stand for the current folder."""
    return [part for part in os.environ.get(name, "").split(os.pathsep) if part]


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """Kills a stage with the processes of its group; returns False where it hangs."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # all have ended
        pass
    try:
        process.wait(_KILL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _last_line(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")

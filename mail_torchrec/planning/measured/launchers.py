"""Launchers of a job's ranks: torchrun on this machine, or TorchX on a scheduler's."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mail_torchrec.distributed.parent import kill_with_parent

_COMPONENT = Path(__file__).parents[3] / "components" / "mail.py"
_SHOWN_LINES = 15


class RankLauncher(Protocol):
    """Runs all ranks of a job."""

    def run(self, folder: Path, world_size: int) -> str | None:
        """Runs the job of a folder to its end; returns why it failed, None where it did not."""


class TorchrunRanks:
    """Runs the ranks by torchrun on this machine; their output goes to ``ranks.log``."""

    def run(self, folder: Path, world_size: int) -> str | None:
        """Runs the job of a folder to its end; returns why it failed, None where it did not."""
        words = ["--standalone", "--nproc-per-node", str(world_size), "-m", "mail_torchrec"]
        log = folder / "ranks.log"
        log.unlink(missing_ok=True)
        code = self.start([*words, "plan", "--rank-job", str(folder)], log)
        if not code:
            return None
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error: " in line] or lines[-_SHOWN_LINES:]
        return f"{errors[0] if errors else f'exit status {code}'} (all of it: {log})"

    def start(self, words: list[str], log: Path) -> int:
        """Runs torchrun, which ends with this process, and returns its exit status."""
        with log.open("ab") as output:
            return subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=kill_with_parent,
                check=False,
            ).returncode


class TorchxRanks:
    """Runs the ranks as a job of ``components/mail.py:plan_ranks``.

    Args:
        scheduler: of TorchX, such as ``slurm``.
        arguments: of the component, name -> value, such as ``j: 2x8``.

    Raises:
        ValueError: TorchX does not know the scheduler, or the component is not there.
    """

    def __init__(self, scheduler: str, arguments: Mapping[str, str]) -> None:
        from torchx.runner import get_runner

        if not _COMPONENT.exists():
            raise ValueError(f"'{_COMPONENT}' should be there; run the command from a checkout")
        self._runner: Any = get_runner()
        known = self._runner.scheduler_backends()
        if scheduler not in known:
            raise ValueError(f"--scheduler should be one of {', '.join(known)}, got '{scheduler}'")
        self._scheduler, self._arguments = scheduler, dict(arguments)

    def run(self, folder: Path, world_size: int) -> str | None:
        """Runs the job of a folder to its end; returns why it failed, None where it did not."""
        from torchx.specs import AppState

        placed = self._arguments.setdefault("j", f"1x{world_size}")
        hosts, _, ranks = placed.rpartition("x")
        if not ranks.isdigit() or int(hosts or "1") * int(ranks) != world_size:
            raise ValueError(f"--job j={placed} should start {world_size} ranks, as --ranks says")
        words = [word for name, value in self._arguments.items() for word in (f"--{name}", value)]
        handle = self._runner.run_component(
            f"{_COMPONENT}:plan_ranks", ["--folder", str(folder.resolve()), *words], self._scheduler
        )
        status = self._runner.wait(handle, wait_interval=1)
        if status is not None and status.state == AppState.SUCCEEDED:
            return None
        state = "unknown to its scheduler" if status is None else str(status.state)
        return f"the job is {state}; `torchx log {handle}` shows its output"


def launcher_of(scheduler: str | None, arguments: Mapping[str, str]) -> RankLauncher:
    """Returns the launcher of a scheduler; None stands for torchrun on this machine."""
    return TorchrunRanks() if scheduler is None else TorchxRanks(scheduler, arguments)


def check_not_a_rank() -> None:
    """Refuses to start ranks from a rank.

    Raises:
        ValueError: this process is one of several ranks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "plan --measure and plan --calibrate start the ranks themselves, received a job of "
            f"{os.environ['WORLD_SIZE']} ranks; call them once, without torchrun"
        )

"""Trials of a sweep as TorchX jobs: on Slurm, Kubernetes, or as torchrun on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mail_torchrec.sweep.trials import TrialFiles
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_COMPONENT = Path(__file__).parents[2] / "components" / "mail.py"


class TorchxLauncher:
    """Starts each training as a job of ``components/mail.py:train``.

    Args:
        scheduler: of TorchX, such as ``slurm``.
        arguments: of the component, name -> value, such as ``j: 1x8``.

    Raises:
        ValueError: TorchX does not know the scheduler, or the component is not there.
    """

    def __init__(self, scheduler: str, arguments: Mapping[str, str]) -> None:
        from torchx.runner import get_runner

        if not _COMPONENT.exists():
            raise ValueError(f"'{_COMPONENT}' should be there; run the sweep from a checkout")
        self._runner = get_runner()
        known = self._runner.scheduler_backends()
        if scheduler not in known:
            raise ValueError(f"scheduler '{scheduler}' should be one of {', '.join(known)}")
        self._scheduler, self._arguments = scheduler, arguments

    def start(self, files: TrialFiles, config: Path, overrides: Sequence[str]) -> "TorchxTrial":
        """Submits a job; it does not end with this process."""
        named = {"config": str(config), "run_dir": str(files.run_dir), "resume": "True"}
        named |= self._arguments
        words = [word for name, value in named.items() for word in (f"--{name}", value)]
        handle = self._runner.run_component(
            f"{_COMPONENT}:train", [*words, "--", *overrides], self._scheduler
        )
        logger.info("trial %s is job %s", files.path.name, handle)
        return TorchxTrial(self._runner, handle)


@dataclass(frozen=True)
class TorchxTrial:
    """A training as a job of TorchX."""

    runner: Any
    handle: str

    def exit_code(self) -> int | None:
        """Returns None while the job is queued or runs, 0 where it succeeded, else 1."""
        from torchx.specs import AppState

        status = self.runner.status(self.handle)
        if status is not None and not status.is_terminal():
            return None
        return 0 if status is not None and status.state == AppState.SUCCEEDED else 1

    def stop(self) -> None:
        """Cancels the job and waits for its end."""
        self.runner.cancel(self.handle)
        self.runner.wait(self.handle, wait_interval=1)

    def reason(self) -> str:
        """Returns the state of the job, and the command that shows its output."""
        status = self.runner.status(self.handle)
        state = "unknown to its scheduler" if status is None else str(status.state)
        return f"the job is {state}; `torchx log {self.handle}` shows its output"

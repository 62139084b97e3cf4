"""The interface of experiment trackers, which a tracker of one's own implements."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

Outcome = Literal["finished", "failed", "stopped"]
"""End of a run: its metrics are there, it ended by an error, or it was told to stop and saved."""


class TrackedValue(NamedTuple):
    """One number of a run."""

    name: str
    """Such as ``loss/ranking`` or ``test/new/auc``."""
    value: float
    step: int
    """Training steps done."""
    milliseconds: int
    """Time since 1970."""


@dataclass(frozen=True)
class RunDescription:
    """A run as a tracker is told of it at its beginning."""

    name: str
    """Name of the configuration; seeds of one method share it."""
    path: Path
    """Run directory."""
    settings: Mapping[str, str]
    """Dotted key -> value of the whole configuration, without credentials."""
    versions: Mapping[str, str]
    """Package -> version."""


class Tracker(ABC):
    """Tells a service of one run; all calls come from one thread beside the training.

    A call may take long and may raise anything: the run goes on, the failure is logged, and values
    are offered again.

    Args:
        options: of the configuration.

    Raises:
        ValueError: an option does not fit; checked before the training begins.
    """

    @abstractmethod
    def __init__(self, options: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def start(self, run: RunDescription, run_id: str | None) -> str:
        """Begins, or goes on with a run that the service knows.

        Args:
            run: the run.
            run_id: what this method returned when the run began; None for a run that begins.

        Returns:
            The service's id of the run, kept in the run directory.
        """

    @abstractmethod
    def log(self, values: Sequence[TrackedValue]) -> None:
        """Records numbers; a call that raised is repeated, with later numbers behind them."""

    @abstractmethod
    def finish(self, outcome: Outcome, files: Sequence[Path]) -> None:
        """Records the end of the run.

        Args:
            outcome: of the run.
            files: small files of the run that are there: configuration, metrics, plan, pictures.
        """

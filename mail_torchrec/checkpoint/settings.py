"""Settings of checkpoints."""

from typing import Literal

from pydantic import Field

from mail_torchrec.settings import Settings


class CheckpointSettings(Settings):
    """Checkpoints of a run.

    One is always written at the end of the training, and when the run is told to stop (SIGTERM).
    """

    every: int = Field(default=1000, ge=0)
    """Steps between two checkpoints; 0 writes only the one at the end."""
    keep: int = Field(default=3, ge=1)
    """Number of newest checkpoints that are kept; older ones are deleted."""
    mode: Literal["async", "sync"] = "async"
    """``async``: the state is copied to buffers in host memory, as large as itself, and written
    while the training goes on. ``sync``: the training waits until the state is written, and needs
    no buffers."""
    on_failure: Literal["warn", "stop"] = "warn"
    """Reaction when a checkpoint during the training cannot be written (a full disk): ``warn`` and
    train on, or ``stop``. Failure of the checkpoint at the end is always an error."""
    grace: float = Field(default=25.0, gt=0)
    """Seconds from SIGTERM to the end of the process, saved or not; torchrun, Slurm and Kubernetes
    kill after 30 seconds by default."""
    restart_state: list[str] = []
    """Tables whose optimizer state starts anew on resuming instead of being read from the
    checkpoint, for tables whose saved state does not fit the sharding."""

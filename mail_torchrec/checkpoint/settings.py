"""When and how a run is saved."""

from typing import Literal

from pydantic import Field

from mail_torchrec.settings import Settings


class CheckpointSettings(Settings):
    """Checkpoints of a run; one is always written at the end of the training, and when the run is told to stop (SIGTERM)."""

    every: int = Field(default=1000, ge=0)
    """Steps between two checkpoints; 0: only the one at the end."""
    keep: int = Field(default=3, ge=1)
    """The newest so many are kept."""
    mode: Literal["async", "sync"] = "async"
    """async: the state is copied to buffers in host memory, as large as itself, and written while
    the training goes on; sync: the training waits until it is written, and needs no buffers."""
    on_failure: Literal["warn", "stop"] = "warn"
    """When a checkpoint on the way cannot be written (a full disk): say so and train on, or stop.
    That of the end is an error always."""
    grace: float = Field(default=25.0, gt=0)
    """Seconds from SIGTERM to the end of the process, saved or not; torchrun, Slurm and Kubernetes
    kill after 30 unless told otherwise."""
    restart_state: list[str] = []
    """Tables whose optimizer state is not taken from the checkpoint but begins anew, where it does
    not fit the sharding."""

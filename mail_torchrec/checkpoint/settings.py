"""Settings of checkpoints."""

from typing import Literal

from pydantic import Field

from mail_torchrec.settings import Settings


class CheckpointSettings(Settings):
    """Checkpoints of a run.

    One is always written at the end of the training, and when the run is told to stop (SIGTERM,
    SIGHUP, or Ctrl-C).
    """

    every: int | None = Field(default=None, ge=0)
    """Steps between two checkpoints; 0 writes only the one at the end, null four an epoch, at least
    10 and at most 1000 steps apart."""
    keep: int = Field(default=3, ge=1)
    """Number of newest checkpoints that are kept; older ones are deleted, but for the best one by
    the validation rows."""
    mode: Literal["async", "sync"] = "async"
    """``async``: the state is copied to buffers in host memory, as large as itself, and written
    while the training goes on. ``sync``: the training waits until the state is written, and needs
    no buffers."""
    on_failure: Literal["warn", "stop"] = "warn"
    """Reaction when a checkpoint during the training cannot be written (a full disk): ``warn`` and
    train on, or ``stop``. Failure of the checkpoint at the end is always an error."""
    grace: float = Field(default=25.0, gt=0)
    """Seconds from SIGTERM, SIGHUP or Ctrl-C to the end of the process, saved or not; torchrun,
    Slurm and Kubernetes kill after 30 seconds by default."""
    restart_state: list[str] = []
    """Tables whose optimizer state starts anew on resuming instead of being read from the
    checkpoint, for tables whose saved state does not fit the sharding."""
    touched_rows: bool | None = None
    """Record in each checkpoint which rows of the tables training has touched since the run began,
    for deltas of exported models; null: in continued runs."""

    def records_touched(self, *, is_continued: bool) -> bool:
        """Returns ``touched_rows``, or its default for a run that continues another or none."""
        return is_continued if self.touched_rows is None else self.touched_rows

    def steps_between(self, steps_per_epoch: int) -> int:
        """Returns ``every``, or its default for epochs of so many steps."""
        return min(max(steps_per_epoch // 4, 10), 1000) if self.every is None else self.every

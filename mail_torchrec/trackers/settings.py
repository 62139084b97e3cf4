"""Settings of the section ``trackers``: services that are told of a run."""

from typing import Any

from pydantic import Field

from mail_torchrec.settings import Settings


class TrackerSettings(Settings):
    """One tracker of a run; TensorBoard's event files are written in any case."""

    name: str
    """`mlflow`, or a class of one's own as `package.module:ClassName`."""
    options: dict[str, Any] = {}
    """Options of the tracker; of `mlflow`: `uri` (else the environment's `MLFLOW_TRACKING_URI`),
    `experiment`, `tags`, `files` (whether the run's small files are uploaded)."""
    close_seconds: float = Field(default=60, ge=0)
    """Seconds that the end of a run waits for the tracker to take what is left."""

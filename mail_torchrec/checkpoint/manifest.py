"""What a checkpoint says of itself, beside its tensors: ``manifest.json``."""

from pathlib import Path

from pydantic import Field, ValidationError

from mail_torchrec.data.reading.partition import Position
from mail_torchrec.settings import Settings

NAME = "manifest.json"
CONFIG = "config.yaml"
PLAN = "plan.json"


class Rank(Settings):
    """What one rank had counted."""

    losses: dict[str, float] = {}
    """Sums of its shares since the last line of metrics.jsonl."""
    counts: list[int] = []
    """What its reader met in the epoch so far."""


class Progressed(Settings):
    """How far the records of a run have come."""

    steps_since_report: int = Field(ge=0)
    log_bytes: int = Field(ge=0)
    """Size of metrics.jsonl; what is behind it when the run resumes was written by steps that are
    taken again."""


class Manifest(Settings):
    """What a checkpoint says of itself."""

    format: int = 1
    step: int = Field(ge=0)
    """Steps trained, over all epochs."""
    position: Position
    progress: Progressed
    ranks: list[Rank]
    written: str
    """When: UTC, ISO 8601."""
    config_name: str
    versions: dict[str, str]
    """Of this package, torch, torchrec."""
    num_rows: int
    """Rows of the training data."""
    data: str
    """Checksum over the rows of each row group of the training data."""
    vocabularies: dict[str, str]
    """Files of the run's ``vocabularies/``, with their SHA-256."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes it into a checkpoint."""
    (folder / NAME).write_text(manifest.model_dump_json(indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Reads what :func:`write_manifest` wrote.

    Raises:
        ValueError: there is none, it is damaged, or of another version of this package.
    """
    try:
        return Manifest.model_validate_json((folder / NAME).read_text())
    except OSError as error:
        raise ValueError(
            f"'{folder}' should be a checkpoint: {folder / NAME} cannot be read ({error.strerror})"
        ) from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{folder / NAME} is damaged, or of another version of mail-torchrec: {error}"
        ) from error

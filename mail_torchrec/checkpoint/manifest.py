"""Manifest of a checkpoint: ``manifest.json``, which describes the state beside its tensors."""

import json
from pathlib import Path

from pydantic import Field, ValidationError

from mail_torchrec.data.fingerprint import FileFingerprint
from mail_torchrec.data.reading.partition import DataPosition
from mail_torchrec.settings import Settings
from mail_torchrec.utils.formats import CHECKPOINT_FORMAT, check_checkpoint_format
from mail_torchrec.utils.safe_paths import read_document

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
PLAN = "plan.json"


class RankProgress(Settings):
    """Sums and counts that one rank had collected."""

    losses: dict[str, float] = {}
    """Sums of this rank's losses since the last report in metrics.jsonl, by name."""
    counts: list[int] = []
    """Counts of this rank's reader in the epoch so far, in the order of ``Reader.count_names``."""


class LogPosition(Settings):
    """Position in the log files of a run."""

    steps_since_report: int = Field(ge=0)
    log_bytes: int = Field(ge=0)
    """Size of metrics.jsonl; lines behind it were written by steps that a resumed run repeats, and
    are cut off."""


class CheckpointManifest(Settings):
    """Description of a checkpoint."""

    format: int = CHECKPOINT_FORMAT
    step: int = Field(ge=0)
    """Steps trained, over all epochs."""
    position: DataPosition
    """Position in the training data."""
    progress: LogPosition
    ranks: list[RankProgress]
    """Progress of each rank, in rank order."""
    written: str
    """Time of writing: UTC, ISO 8601."""
    config_name: str
    versions: dict[str, str]
    """Versions of this package, torch and torchrec."""
    num_rows: int
    """Rows of the training data."""
    data: tuple[FileFingerprint, ...]
    """Fingerprints of the training data's files."""
    vocabularies: dict[str, str]
    """Files of the run's ``vocabularies/``, with their SHA-256."""


def manifest_text(manifest: CheckpointManifest) -> str:
    """Formats a manifest as the text of its file."""
    return manifest.model_dump_json(indent=1) + "\n"


def check_format(folder: Path) -> None:
    """Refuses a checkpoint of another format; a damaged or missing manifest passes.

    Raises:
        ValueError: the checkpoint has another format.
    """
    try:
        tree = json.loads(read_document(folder / MANIFEST))
    except (OSError, ValueError, RecursionError):
        return
    check_checkpoint_format(folder, tree)


def read_manifest(folder: Path) -> CheckpointManifest:
    """Reads the manifest of a checkpoint.

    Raises:
        ValueError: there is none, it is damaged, or the checkpoint has another format.
    """
    path = folder / MANIFEST
    try:
        tree = json.loads(read_document(path))
    except OSError as error:
        raise ValueError(
            f"'{folder}' should be a checkpoint: {path} cannot be read ({error.strerror})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    check_checkpoint_format(folder, tree)
    try:
        return CheckpointManifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is damaged: {place}: {first['msg']}") from error

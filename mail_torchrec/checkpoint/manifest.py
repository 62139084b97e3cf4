"""Manifest of a checkpoint: ``manifest.json``, which describes the state beside its tensors."""

import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from mail_torchrec.data.fingerprint import FileFingerprint
from mail_torchrec.data.reading.partition import DataPosition
from mail_torchrec.records.checksums import CHECKSUMS, sha256
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.formats import CHECKPOINT_FORMAT, check_checkpoint_format, package_version
from mail_torchrec.utils.safe_paths import read_document
from mail_torchrec.validation.progress import ValidationProgress

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
PLAN = "plan.json"


Count = Annotated[int, Field(ge=0, le=2**53)]
"""Count of a damaged or foreign manifest as well: a tensor and a float hold it."""


class RankProgress(Settings):
    """Sums and counts that one rank had collected."""

    losses: dict[str, FiniteFloat] = {}
    """Sums of this rank's losses since the last report in metrics.jsonl, by name."""
    counts: list[Count] = []
    """Counts of this rank's reader in the epoch so far, in the order of ``Reader.count_names``."""


class LogPosition(Settings):
    """Position in the log files of a run."""

    steps_since_report: Count
    log_bytes: Count
    """Size of metrics.jsonl; lines behind it were written by steps that a resumed run repeats, and
    are cut off."""


class CheckpointManifest(Settings):
    """Description of a checkpoint."""

    format: int = CHECKPOINT_FORMAT
    step: Count
    """Steps trained, over all epochs."""
    position: DataPosition
    """Position in the training data."""
    progress: LogPosition
    ranks: list[RankProgress] = Field(min_length=1)
    """Progress of each rank, in rank order."""
    written: str
    """Time of writing: UTC, ISO 8601."""
    config_name: str
    versions: dict[str, str]
    """Versions of this package, torch and torchrec."""
    num_rows: Count
    """Rows of the training data."""
    data: tuple[FileFingerprint, ...]
    """Fingerprints of the training data's files."""
    day: str | None = Field(default=None, exclude_if=lambda day: day is None)
    """Day of the training data, such as 2024-05-31, where the files tell one."""
    validation_rows: Count = 0
    """Validation rows; 0 where the run has none."""
    validation_data: tuple[FileFingerprint, ...] = ()
    """Fingerprints of their files, those of the training data where they are split from it."""
    validation: ValidationProgress = ValidationProgress()
    """Evaluations of the validation rows so far."""
    vocabularies: dict[str, str]
    """Files of the run's ``vocabularies/``, with their SHA-256."""

    @model_validator(mode="after")
    def _check_ranks(self) -> Self:
        """Checks that all ranks have counted and summed the same."""
        kinds = {(tuple(sorted(one.losses)), len(one.counts)) for one in self.ranks}
        if len({losses for losses, _ in kinds}) > 1 or len({number for _, number in kinds}) > 1:
            raise ValueError("ranks should have the same losses and as many counts each")
        return self


def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that a model depends on."""
    return {name: package_version(name) for name in ("mail-torchrec", "torch", "torchrec")}


def manifest_text(manifest: CheckpointManifest) -> str:
    """Formats a manifest as the text of its file."""
    return manifest.model_dump_json(indent=1) + "\n"


def checkpoint_digest(folder: Path) -> str:
    """Computes the SHA-256 of a checkpoint's list of checksums, and so of all its files."""
    return sha256(folder / CHECKSUMS)


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
        raise ValueError(f"{path} is damaged: {first_fault(error)}") from error

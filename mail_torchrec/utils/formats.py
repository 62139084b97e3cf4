"""Format numbers of run directories and checkpoints; other formats are refused, not converted."""

import json
from pathlib import Path
from typing import Any

RUN_FORMAT = 3
CHECKPOINT_FORMAT = 2
RUN_FILE = "run.json"
"""File of a run directory with its format number. Format 1 had no such file."""


def check_run_format(run_dir: Path) -> None:
    """Refuses a run directory of another format.

    Raises:
        ValueError: the run directory has another format than :data:`RUN_FORMAT`.
    """
    try:
        record = json.loads((run_dir / RUN_FILE).read_text())
    except FileNotFoundError:
        record = {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{run_dir / RUN_FILE} cannot be read: {error}") from error
    _check(record, RUN_FORMAT, f"run directory '{run_dir}'")


def check_checkpoint_format(folder: Path, manifest: Any) -> None:
    """Refuses a checkpoint of another format.

    Args:
        folder: the checkpoint.
        manifest: its manifest, parsed from JSON.

    Raises:
        ValueError: the checkpoint has another format than :data:`CHECKPOINT_FORMAT`.
    """
    _check(manifest, CHECKPOINT_FORMAT, f"checkpoint '{folder}'")


def write_run_format(run_dir: Path, package_version: str) -> None:
    """Writes the format number and the version of this package into a new run directory."""
    record = {"format": RUN_FORMAT, "version": package_version}
    (run_dir / RUN_FILE).write_text(json.dumps(record) + "\n")


def _check(record: Any, expected: int, subject: str) -> None:
    found = record.get("format", 1) if isinstance(record, dict) else None
    if found != expected:
        raise ValueError(
            f"{subject} should have format {expected}, received format {found}, which another "
            "version of mail-torchrec wrote; use that version, or train the run again"
        )

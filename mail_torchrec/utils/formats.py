"""Format numbers of run directories and checkpoints; other formats are refused, not converted.

Versions of packages too, which the same records hold.
"""

import json
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.safe_paths import read_document

RUN_FORMAT = 5
CHECKPOINT_FORMAT = 3
_FIRST_CHECKPOINT = "first_checkpoint"
RUN_FILE = "run.json"
"""File of a run directory with its format number. Format 1 had no such file."""


def package_version(name: str) -> str:
    """Returns the version of a package, installed or a mere folder of sources.

    Args:
        name: as it is installed by, such as ``mail-torchrec``.
    """
    try:
        return version(name)
    except PackageNotFoundError:
        module = import_module(name.replace("-", "_"))
        return str(getattr(module, "__version__", "unknown"))


def check_run_format(run_dir: Path) -> None:
    """Refuses a run directory of another format.

    Raises:
        ValueError: the run directory has another format than :data:`RUN_FORMAT`.
    """
    _check(_read_record(run_dir), RUN_FORMAT, f"run directory '{run_dir}'")


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
    """Writes the format number and the version of this package into a run directory.

    Raises:
        OSError: the file cannot be written.
    """
    record = {"format": RUN_FORMAT, "version": package_version}
    if step := first_checkpoint(run_dir):
        record[_FIRST_CHECKPOINT] = step
    write_file(run_dir / RUN_FILE, json.dumps(record) + "\n")


def first_checkpoint(run_dir: Path) -> int | None:
    """Returns the step of the first checkpoint that a run published; None where it has none yet.

    It says so even where the checkpoints are gone.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    step: int | None = _read_record(run_dir).get(_FIRST_CHECKPOINT)
    return step


def record_checkpoint(run_dir: Path, step: int) -> None:
    """Records that a run has published a checkpoint, the first time.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it is damaged.
    """
    if first_checkpoint(run_dir) is None:
        record = _read_record(run_dir) | {_FIRST_CHECKPOINT: step}
        write_file(run_dir / RUN_FILE, json.dumps(record) + "\n")


def _read_record(run_dir: Path) -> dict[str, Any]:
    """Reads the record of a run directory; an empty one where there is none."""
    try:
        record = json.loads(read_document(run_dir / RUN_FILE))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{run_dir / RUN_FILE} is damaged: {error}") from error
    step = record.get(_FIRST_CHECKPOINT, 1) if isinstance(record, dict) else None
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(
            f"{run_dir / RUN_FILE} is damaged: {_FIRST_CHECKPOINT} should be a step, received "
            f"{step!r}"
        )
    return dict(record)


def _check(record: Any, expected: int, subject: str) -> None:
    found = record.get("format", 1) if isinstance(record, dict) else None
    if found != expected:
        raise ValueError(
            f"{subject} should have format {expected}, received format {found!r}, which another "
            "version of mail-torchrec wrote; use that version, or train the run again"
        )

"""Checks that a checkpoint is whole: all files that a reader needs are listed and unchanged.

Needs no torch.
"""

from pathlib import Path

from mail_torchrec.checkpoint.folder import DCP_METADATA
from mail_torchrec.checkpoint.manifest import CONFIG, MANIFEST, PLAN
from mail_torchrec.checkpoint.tensor_index import INDEX, read_index
from mail_torchrec.records.checksums import CHECKSUMS, checksum_error, read_checksums


def checkpoint_faults(folder: Path) -> list[str]:
    """Lists the faults of a checkpoint, one line each; empty where it is whole."""
    try:
        checksums = read_checksums(folder)
    except ValueError as error:
        return [str(error)]
    faults = (checksum_error(folder, name, expected) for name, expected in checksums.items())
    return [*list_faults(folder, checksums), *filter(None, faults)]


def list_faults(folder: Path, checksums: dict[str, str]) -> list[str]:
    """Lists the files that a checkpoint needs, and that its list of checksums leaves out.

    Without this, a file could be changed by dropping its line from the list.

    Args:
        folder: the checkpoint.
        checksums: its list of checksums, by file name.
    """
    try:
        files = read_index(folder).files
    except ValueError as error:
        return [str(error)]
    needed = {MANIFEST, CONFIG, PLAN, INDEX, DCP_METADATA} | files
    missing = ", ".join(sorted(needed - checksums.keys()))
    return [f"{folder / CHECKSUMS} should list {missing} too; it was shortened"] if missing else []

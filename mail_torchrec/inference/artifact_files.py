"""Files of an exported model: their names and checksums."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from pydantic import Field

from mail_torchrec.settings import Settings
from mail_torchrec.utils.safe_paths import open_regular

MANIFEST = "manifest.json"
GOLDEN = "golden.json"
VOCABULARIES = "vocabularies"
"""Folder of the id encoders and scales."""
ONNX_MODEL = "model.onnx"
DENSE_WEIGHTS = "dense.bin"
"""Dense weights of :data:`ONNX_MODEL`, which names the file."""


class FileInfo(Settings):
    """Size and checksum of one file."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def checksum(path: Path) -> FileInfo:
    """Computes size and SHA-256 of a regular file, or of the one that a link leads to."""
    with open_regular(path, follow_link=True) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileInfo(bytes=file.tell(), sha256=sha256)


def checksums(folder: Path, skipped: Collection[str] = ()) -> dict[str, FileInfo]:
    """Computes the checksums of every file below a folder, by path inside it.

    Args:
        folder: the folder.
        skipped: folders in it to leave out.
    """
    return {
        str(path.relative_to(folder)): checksum(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in skipped
    }

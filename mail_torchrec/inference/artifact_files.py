"""Files of an exported model: their names, checksums and common version."""

import hashlib
from pathlib import Path

from mail_torchrec.settings import Settings

MANIFEST = "manifest.json"
GOLDEN = "golden.json"
VOCABULARIES = "vocabularies"
"""Folder of the id encoders and scales."""
ONNX_MODEL = "model.onnx"
DENSE_WEIGHTS = "dense.bin"
"""Dense weights of :data:`ONNX_MODEL`, which names the file."""


class FileInfo(Settings):
    """Size and checksum of one file."""

    bytes: int
    sha256: str


def checksum(path: Path) -> FileInfo:
    """Computes size and SHA-256 of a file."""
    with path.open("rb") as file:
        return FileInfo(
            bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest()
        )


def checksums(folder: Path) -> dict[str, FileInfo]:
    """Computes the checksums of every file below a folder, by path inside it."""
    return {
        str(path.relative_to(folder)): checksum(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def version_of(files: dict[str, FileInfo]) -> str:
    """Derives a version from checksums: equal files have equal versions."""
    text = "".join(f"{name} {info.sha256}\n" for name, info in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]

"""Folders of checkpoints: names, checksums, publishing, retention. Needs no torch.

``step-00000120`` is a published checkpoint. ``.step-00000120.partial`` is being written, or was
when its run was killed; renaming publishes it. ``step-00000120.damaged`` was found damaged on
resuming and is kept for inspection.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PUBLISHED = re.compile(r"step-(\d{8,})")
CHECKSUMS = "SHA256SUMS"
"""List of a checkpoint's files with their checksums, in the format of ``sha256sum --check``."""


@dataclass(frozen=True)
class Checkpoints:
    """Manages the folder that holds the checkpoints of a run."""

    path: Path
    """The folder; it need not exist yet."""

    def published(self) -> list[Path]:
        """Lists the published checkpoints, the oldest first."""
        if not self.path.is_dir():
            return []
        found = [
            path
            for path in self.path.iterdir()
            if _PUBLISHED.fullmatch(path.name) and path.is_dir()
        ]
        return sorted(found, key=step_of)

    def target(self, step: int) -> Path:
        """Returns the folder of a published checkpoint."""
        return self.path / f"step-{step:08d}"

    def partial(self, step: int) -> Path:
        """Returns the folder of a checkpoint that is being written."""
        return self.path / f".step-{step:08d}.partial"

    def prepare(self, step: int) -> Path:
        """Creates the empty folder that a checkpoint is written into."""
        folder = self.partial(step)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def publish(self, step: int) -> Path:
        """Publishes a written checkpoint by an atomic rename."""
        folder, target = self.partial(step), self.target(step)
        _sync_folder(folder)
        folder.rename(target)
        _sync_folder(self.path)
        return target

    def retain(self, keep: int) -> None:
        """Deletes all published checkpoints but the newest ``keep``."""
        for path in self.published()[:-keep]:
            self._remove(path)

    def clean(self) -> None:
        """Deletes partially written and partially deleted checkpoints of killed runs."""
        if self.path.is_dir():
            for path in self.path.glob(".step-*"):
                shutil.rmtree(path)

    def quarantine(self, path: Path) -> Path:
        """Renames a damaged checkpoint to ``*.damaged``, so that it is not used again."""
        damaged = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(damaged, ignore_errors=True)
        return path.rename(damaged)

    def _remove(self, path: Path) -> None:
        """Deletes a checkpoint; a kill meanwhile leaves no published checkpoint without files."""
        hidden = path.rename(path.with_name(f".{path.name}.deleted"))
        shutil.rmtree(hidden)


def step_of(path: Path) -> int:
    """Returns the step of a published checkpoint."""
    found = _PUBLISHED.match(path.name)
    assert found is not None
    return int(found[1])


def sha256(path: Path) -> str:
    """Computes the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Computes the checksums of files, by name."""
    return {name: sha256(folder / name) for name in names}


def write_checksums(folder: Path, checksums: dict[str, str]) -> None:
    """Writes the list of checksums; after all other files."""
    lines = (f"{checksums[name]}  {name}\n" for name in sorted(checksums))
    write_synced(folder / CHECKSUMS, "".join(lines))


def read_checksums(folder: Path) -> dict[str, str]:
    """Reads the list of checksums, by file name.

    Raises:
        ValueError: the list is missing or damaged.
    """
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / CHECKSUMS} cannot be read: {error}") from error
    found = [re.fullmatch(r"([0-9a-f]{64})  ([^/]+)", line) for line in lines]
    if not lines or None in found:
        raise ValueError(
            f"{folder / CHECKSUMS} should have a checksum and a file name in each line; it is "
            "damaged"
        )
    return {match[2]: match[1] for match in found if match is not None}


def checksum_error(folder: Path, name: str, expected: str) -> str | None:
    """Compares a file with its checksum; describes the fault, or returns None."""
    try:
        received = sha256(folder / name)
    except OSError as error:
        return f"{folder / name} cannot be read ({error.strerror})"
    return (
        None
        if received == expected
        else f"{folder / name} should have the SHA-256 {expected}, it has {received}"
    )


def write_synced(path: Path, text: str) -> None:
    """Writes a file and waits until it is on the disk."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Checkpoints as folders: names, checksums, publishing, retention. Nothing here needs torch.

``step-00000120`` is a published checkpoint. One that is being written, or was when its run was
killed, is ``.step-00000120.partial``; renaming publishes it. ``step-00000120.damaged`` was found
damaged on resuming and is kept to be looked at.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PUBLISHED = re.compile(r"step-(\d{8,})")
SUMS = "SHA256SUMS"
"""The list of a checkpoint's files with their checksums, as ``sha256sum --check`` reads it."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run.

    Args:
        path: the folder that holds them.
    """

    path: Path

    def published(self) -> list[Path]:
        """Whole checkpoints, the oldest first."""
        if not self.path.is_dir():
            return []
        found = [
            path
            for path in self.path.iterdir()
            if _PUBLISHED.fullmatch(path.name) and path.is_dir()
        ]
        return sorted(found, key=step_of)

    def target(self, step: int) -> Path:
        """Where the checkpoint of a step is published."""
        return self.path / f"step-{step:08d}"

    def partial(self, step: int) -> Path:
        """Where the checkpoint of a step is written."""
        return self.path / f".step-{step:08d}.partial"

    def prepare(self, step: int) -> Path:
        """Makes the empty folder to write into."""
        folder = self.partial(step)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def publish(self, step: int) -> Path:
        """Gives a written checkpoint its name, in one step that cannot be half done."""
        folder, target = self.partial(step), self.target(step)
        _sync_folder(folder)
        folder.rename(target)
        _sync_folder(self.path)
        return target

    def retain(self, keep: int) -> None:
        """Deletes all but the newest ``keep``."""
        for path in self.published()[:-keep]:
            self._remove(path)

    def clean(self) -> None:
        """Deletes what killed runs left half written or half deleted."""
        if self.path.is_dir():
            for path in self.path.glob(".step-*"):
                shutil.rmtree(path)

    def set_aside(self, path: Path) -> Path:
        """Renames a damaged checkpoint, so that it is not picked up again."""
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        return path.rename(aside)

    def _remove(self, path: Path) -> None:
        """Deletes a checkpoint; a kill on the way leaves no published one that lacks files."""
        hidden = path.rename(path.with_name(f".{path.name}.deleted"))
        shutil.rmtree(hidden)


def step_of(path: Path) -> int:
    """The step of a published checkpoint."""
    found = _PUBLISHED.match(path.name)
    assert found is not None
    return int(found[1])


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """File name -> checksum."""
    return {name: digest(folder / name) for name in names}


def write_sums(folder: Path, sums: dict[str, str]) -> None:
    """Writes the list of all files; after everything else."""
    write_synced(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> checksum.

    Raises:
        ValueError: there is no such list, or it is damaged.
    """
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / SUMS} cannot be read: {error}") from error
    found = [re.fullmatch(r"([0-9a-f]{64})  ([^/]+)", line) for line in lines]
    if not lines or None in found:
        raise ValueError(
            f"{folder / SUMS} should have a checksum and a file name in each line; it is damaged"
        )
    return {match[2]: match[1] for match in found if match is not None}


def fault(folder: Path, name: str, expected: str) -> str | None:
    """What is wrong with a file of a checkpoint; None where it is whole."""
    try:
        received = digest(folder / name)
    except OSError as error:
        return f"{folder / name} cannot be read ({error.strerror})"
    return (
        None
        if received == expected
        else f"{folder / name} should have the SHA-256 {expected}, it has {received}"
    )


def write_synced(path: Path, text: str) -> None:
    """Writes a file and waits until the disk has it."""
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

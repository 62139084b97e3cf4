"""Folders of checkpoints: names, checksums, publishing, retention. Needs no torch.

``step-00000120`` is a published checkpoint. ``.step-00000120.partial`` is being written, or was
when its run was killed; renaming publishes it. ``step-00000120.damaged`` was found damaged on
resuming from the one before it, and is kept for inspection. An error in reading is not damage.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mail_torchrec.utils.run_files import named_errors, sync_folder, write_file
from mail_torchrec.utils.safe_paths import check_plain_name, open_regular, read_document

_PUBLISHED = re.compile(r"step-(\d{8,})")
CHECKSUMS = "SHA256SUMS"
"""List of a checkpoint's files with their checksums, in the format of ``sha256sum --check``."""
DCP_METADATA = ".metadata"
"""File of ``torch.distributed.checkpoint``, for others' tools: a pickle, which is not read here."""


@dataclass(frozen=True)
class Checkpoints:
    """Manages the folder that holds the checkpoints of a run."""

    path: Path
    """The folder; it need not exist yet."""

    def published(self) -> list[Path]:
        """Lists the published checkpoints, the oldest first.

        A link counts, even where it leads nowhere: its storage may be away for a while.
        """
        found = [
            path
            for path in self._entries()
            if _PUBLISHED.fullmatch(path.name) and (path.is_symlink() or path.is_dir())
        ]
        return sorted(found, key=step_of)

    def traces(self) -> list[Path]:
        """Lists all that says that a checkpoint was published here, damaged or not."""
        return sorted(path for path in self._entries() if path.name.startswith("step-"))

    def target(self, step: int) -> Path:
        """Returns the folder of a published checkpoint."""
        return self.path / f"step-{step:08d}"

    def partial(self, step: int) -> Path:
        """Returns the folder of a checkpoint that is being written."""
        return self.path / f".step-{step:08d}.partial"

    def prepare(self, step: int) -> Path:
        """Creates the empty folder that a checkpoint is written into."""
        folder = self.partial(step)
        _delete(folder)
        folder.mkdir(parents=True)
        return folder

    def publish(self, step: int) -> Path:
        """Publishes a written checkpoint by an atomic rename."""
        folder, target = self.partial(step), self.target(step)
        sync_folder(folder)
        folder.rename(target)
        sync_folder(self.path)
        return target

    def retain(self, keep: int) -> None:
        """Deletes all published checkpoints but the newest ``keep``."""
        for path in self.published()[:-keep]:
            self._remove(path)

    def clean(self) -> None:
        """Deletes partially written and partially deleted checkpoints of killed runs."""
        for path in self._entries():
            if path.name.startswith(".step-"):
                _delete(path)

    def quarantine(self, path: Path) -> Path:
        """Renames a damaged checkpoint to ``*.damaged``, so that it is not used again."""
        damaged = path.with_name(f"{path.name}.damaged")
        for number in count(2):
            if not os.path.lexists(damaged):
                break
            damaged = path.with_name(f"{path.name}.damaged-{number}")
        return path.rename(damaged)

    def _entries(self) -> list[Path]:
        """Lists everything in the folder; nothing where there is no such folder.

        Raises:
            OSError: it cannot be listed, or is a link that leads nowhere.
        """
        return list(self.path.iterdir()) if os.path.lexists(self.path) else []

    def _remove(self, path: Path) -> None:
        """Deletes a checkpoint; a kill meanwhile leaves no published checkpoint without files."""
        _delete(path.rename(path.with_name(f".{path.name}.deleted")))


def step_of(path: Path) -> int:
    """Returns the step of a published checkpoint."""
    found = _PUBLISHED.match(path.name)
    assert found is not None
    return int(found[1])


def sha256(path: Path) -> str:
    """Computes the SHA-256 of a regular file."""
    with named_errors(path), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Computes the checksums of files, by name."""
    return {name: sha256(folder / name) for name in names}


def write_checksums(folder: Path, checksums: dict[str, str]) -> None:
    """Writes the list of checksums; after all other files."""
    lines = (f"{checksums[name]}  {name}\n" for name in sorted(checksums))
    write_file(folder / CHECKSUMS, "".join(lines))


def read_checksums(folder: Path) -> dict[str, str]:
    """Reads the list of checksums, by file name.

    Raises:
        ValueError: the list is missing or damaged.
        OSError: it cannot be read.
    """
    try:
        text = read_document(folder / CHECKSUMS)
    except FileNotFoundError as error:
        check_missing(folder, CHECKSUMS)
        raise ValueError(f"{folder / CHECKSUMS} is missing") from error
    except ValueError as error:
        raise ValueError(f"{folder / CHECKSUMS} cannot be read: {error}") from error
    found = re.findall(r"([0-9a-f]{64})  ([^/\n]+)\n", text)
    whole = "".join(f"{checksum}  {name}\n" for checksum, name in found) == text
    checksums = {check_plain_name(name): checksum for checksum, name in found}
    if not found or not whole or len(checksums) < len(found):
        raise ValueError(
            f"{folder / CHECKSUMS} should have a checksum and a file name in each line, and each "
            "name once; it is damaged"
        )
    return checksums


def checksum_error(folder: Path, name: str, expected: str) -> str | None:
    """Compares a file with its checksum; describes the fault, or returns None.

    Raises:
        OSError: the file is there, or its folder is not, and cannot be read.
    """
    try:
        received = sha256(folder / name)
    except FileNotFoundError:
        check_missing(folder, name)
        return f"{folder / name} is missing"
    except ValueError as error:
        return str(error)
    return (
        None
        if received == expected
        else f"{folder / name} should have the SHA-256 {expected}, it has {received}"
    )


def check_missing(folder: Path, name: str) -> None:
    """Confirms that a folder lacks a file that could not be opened.

    Network storage may deny for a moment a file or a folder that was just made.

    Raises:
        OSError: the folder names the file, or is not there itself.
    """
    if name in os.listdir(folder):
        raise OSError(errno.ESTALE, "it is listed and cannot be opened", str(folder / name))


def _delete(path: Path) -> None:
    """Deletes a folder or a file where there is one; of a link, the link alone."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)

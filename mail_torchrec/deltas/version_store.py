"""Versions of a model in one folder, those that are on their way out included.

Versions that came by deltas share the files of their tables. The rows that a version uses are free
for others once its folder is gone and nobody reads it: until then it stays, hidden.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mail_torchrec.inference.artifact_files import MANIFEST
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.tables.table_info import TableInfo
from mail_torchrec.inference.tables.table_rows import read_positions
from mail_torchrec.inference.tables.version_lock import is_read
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

UNFINISHED = ".apply-"
"""Beginning of the name of a version that is being made, or was when its process was killed."""
_RETIRED = ".retired-"
"""Beginning of the name of a version that nobody is to begin with any more."""


@dataclass(frozen=True)
class StoredVersion:
    """Version in a folder of versions."""

    folder: Path
    manifest: ArtifactManifest

    @property
    def is_retired(self) -> bool:
        """True where it is there for its last readers alone."""
        return self.folder.name.startswith(_RETIRED)


class VersionStore:
    """Versions of a folder, each once whatever links lead to it; one process changes it at a time.

    What earlier processes left behind is deleted first, versions that nobody reads any more too.

    Args:
        root: the folder; the caller holds its lock.

    Raises:
        ValueError: the folder is a version itself.
        OSError: it cannot be read.
    """

    def __init__(self, root: Path) -> None:
        if (root / MANIFEST).exists():
            raise ValueError(
                f"'{root}' should be a folder of versions, it is one itself; move it into a folder "
                "of its own and name that one"
            )
        self.root = root
        self._sweep()
        self.versions = self._read()

    @property
    def listed(self) -> list[StoredVersion]:
        """Versions that servers see."""
        return [one for one in self.versions if not one.is_retired]

    def used_rows(self, base: StoredVersion, table: str) -> npt.NDArray[np.bool_] | None:
        """Finds which rows of a table's files some version uses, [capacity].

        Returns:
            Flags; None where the files have a link that is no version's here, so that whoever has
            it may read any row of them.
        """
        info = _table(base, table)
        assert info.spare is not None
        used = np.zeros(info.spare.capacity, bool)
        sharing = [one for one in self.versions if _shares(one, base, table)]
        for version in sharing:
            used[read_positions(version.folder, _table(version, table))] = True
        links = max((base.folder / file).stat().st_nlink for file in info.files.values())
        return used if links == len(sharing) else None

    def retire(self, chain: Sequence[str], keep: int) -> None:
        """Takes away all but the newest versions of a chain, except those that links lead to.

        Args:
            chain: versions, the oldest first.
            keep: number of versions to keep.
        """
        linked = {path.resolve() for path in self.root.iterdir() if path.is_symlink()}
        age = {version: place for place, version in enumerate(chain)}
        found = sorted(
            (one for one in self._read() if one.manifest.version in age and not one.is_retired),
            key=lambda one: age[one.manifest.version],
        )
        for version in found[: max(len(found) - keep, 0)]:
            inside = version.folder.parent == self.root.resolve()
            if inside and version.folder not in linked:
                logger.info(
                    "version %s is taken away: %s (%d newer ones are kept)",
                    version.manifest.version,
                    version.folder,
                    keep,
                )
                version.folder.rename(self._retired_name(version.folder.name))
        self._sweep()

    def _retired_name(self, name: str) -> Path:
        names = (self.root / f"{_RETIRED}{name}-{number}" for number in count())
        return next(path for path in names if not path.exists())

    def _sweep(self) -> None:
        """Deletes unfinished versions, and retired ones that nobody reads."""
        for path in self.root.glob(f"{UNFINISHED}*"):
            shutil.rmtree(path)
        for path in self.root.glob(f"{_RETIRED}*"):
            if not (path / MANIFEST).exists() or not is_read(path / MANIFEST):
                shutil.rmtree(path)

    def _read(self) -> list[StoredVersion]:
        found = {}
        for path in sorted(self.root.iterdir()):
            is_hidden = path.name.startswith(".") and not path.name.startswith(_RETIRED)
            if is_hidden or not (path / MANIFEST).exists():
                continue
            try:
                found[path.resolve()] = ArtifactManifest.read(path)
            except ValueError as error:  # servers refuse it too; its links count as unknown ones
                logger.warning("passed over: %s", error)
        return [StoredVersion(folder, manifest) for folder, manifest in found.items()]


def _table(version: StoredVersion, table: str) -> TableInfo:
    return version.manifest.tables[table]


def _shares(version: StoredVersion, base: StoredVersion, table: str) -> bool:
    """Tells if two versions share a file of a table."""
    info = version.manifest.tables.get(table)
    if info is None or info.spare is None:
        return False
    files = [version.folder / file for file in info.files.values()]
    others = [base.folder / file for file in _table(base, table).files.values()]
    return any(
        os.path.samefile(one, other)
        for one, other in zip(files, others, strict=False)
        if one.exists()
    )

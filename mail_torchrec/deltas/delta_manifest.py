"""Description of a delta: the version that it is applied to, the version it makes, checksums."""

import hashlib
import json
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError

from mail_torchrec.inference.artifact_files import MANIFEST, FileInfo, checksum
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.safe_paths import PlainPath, read_document

DELTA = "delta.json"
"""File of a delta, and of a version that was made by one."""
ROWS = "rows"
"""Folder of the changed rows."""
TOMBSTONES = "tombstones"
"""Folder of the ids that are gone."""


class ChangedTable(Settings):
    """Rows of a table that differ from the base's."""

    num_changed: int = Field(ge=0)
    """Number of rows; they are in ``rows/TABLE.int64`` and, part by part, ``rows/TABLE.PART``."""
    num_gone: int = Field(default=0, ge=0)
    """Number of ids that the base knew and the version does not; they are in
    ``tombstones/TABLE.parquet``."""


class DeltaManifest(Settings):
    """Content of ``delta.json``."""

    format: Literal[1] = 1
    base: str
    """Version that the delta is applied to."""
    version: str
    """Version that it makes; the manifest of that version is in the delta."""
    ancestors: list[str]
    """Versions before the base, the oldest first, as far as they are known."""
    tables: dict[str, ChangedTable]
    """Every table of the version."""
    base_files: list[PlainPath]
    """Files of the version that are the base's, and not in the delta."""
    files: dict[PlainPath, FileInfo]
    """Every other file of the delta, by its path in it."""
    digest: str = ""
    """SHA-256 of all of the above, and so of every file, and of the base's and the version's."""

    def content_digest(self) -> str:
        """Computes the digest."""
        content = json.loads(self.model_dump_json(exclude={"digest"}))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> Self:
        """Writes the description into the delta's folder, and returns it with its digest."""
        complete = self.model_copy(update={"digest": self.content_digest()})
        (folder / DELTA).write_text(complete.model_dump_json(indent=1) + "\n")
        return complete

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the description of a delta, or of the one that made a version.

        Raises:
            ValueError: no delta, or a damaged one.
        """
        path = folder / DELTA
        try:
            delta = cls.model_validate_json(read_document(path, follow_link=True))
        except OSError as error:
            raise ValueError(
                f"'{folder}' should be what `mail-torchrec export --delta-of` wrote: no {DELTA} "
                f"there ({error.strerror})"
            ) from error
        except ValidationError as error:
            raise ValueError(
                f"'{path}' is damaged, or of another version of mail-torchrec: "
                f"{first_fault(error)}; copy or export the delta anew"
            ) from error
        if delta.digest != delta.content_digest():
            raise ValueError(
                f"'{path}' is damaged (its digest differs); copy or export the delta anew"
            )
        return delta

    def check_files(self, folder: Path) -> ArtifactManifest:
        """Compares every file with its checksum; returns the manifest of the version it makes.

        Raises:
            ValueError: a file is missing or differs, or is of another version.
        """
        for name, expected in self.files.items():
            try:
                found = checksum(folder / name)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise ValueError(
                    f"the delta '{folder}' should hold '{name}': it is missing; copy it whole"
                ) from error
            if found != expected:
                raise ValueError(
                    f"'{folder / name}' is not the file that was exported (its checksum differs); "
                    "copy or export the delta anew"
                )
        manifest = ArtifactManifest.read(folder)
        if manifest.version != self.version or MANIFEST not in self.files:
            raise ValueError(
                f"'{folder / MANIFEST}' should be of version {self.version}, received "
                f"{manifest.version}; copy or export the delta anew"
            )
        return manifest


def ancestors_of(folder: Path) -> list[str]:
    """Lists the versions that a version or delta descends from, the oldest first; may be none.

    Raises:
        ValueError: the description of the delta that made it is damaged.
    """
    if not (folder / DELTA).exists():
        return []
    delta = DeltaManifest.read(folder)
    return [*delta.ancestors, delta.base]

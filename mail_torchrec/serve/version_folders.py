"""Folders of exported versions, told apart by their files instead of their names.

A name can come to mean another version: a link is switched, another folder is renamed onto it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

from mail_torchrec.inference.artifact_files import MANIFEST
from mail_torchrec.inference.tables.table_rows import SPARE_TABLES
from mail_torchrec.publishing.follower import CURRENT

Fingerprint = tuple[tuple[str, int, int, int, int, int], ...]
"""Path, device, inode, size, times of modification and of change of a folder and its files.

The time of change is 0 for folders, which change when they are renamed. Both are 0 for files with
spare rows: other versions share them and are given rows there, which this one does not look up."""


@dataclass(frozen=True)
class VersionFolder:
    """Folder with a manifest, as it was when it was listed."""

    path: Path
    """Folder or link as listed; its name is the version's name for clients."""
    target: Path
    """Folder behind all links. A version is read from there, since links may be switched."""
    fingerprint: Fingerprint
    """Equal for a link and its target, and for a folder before and after it was renamed."""


def version_folders(root: Path) -> list[VersionFolder]:
    """Lists the versions of a root folder: it is one itself, or each folder in it with a manifest.

    Raises:
        OSError: the root folder cannot be read.
    """
    if os.path.lexists(root / MANIFEST):
        return [_version_folder(root)]
    return [
        _version_folder(path)
        for path in sorted(root.iterdir())
        if not path.name.startswith(".") and _has_manifest(path)
    ]


def linked_version(folders: Sequence[VersionFolder], candidate: str | None) -> str | None:
    """Returns the name of the link that chooses the serving version; None: no link does.

    It is the only link to a version that is listed beside it, or ``CURRENT`` of several.

    Args:
        folders: all versions of a root folder.
        candidate: name of the traffic split's candidate, whose link chooses nothing.
    """
    versions = {folder.target for folder in folders if not folder.path.is_symlink()}
    targets = {
        folder.path.name: folder.target
        for folder in folders
        if folder.path.is_symlink() and folder.target in versions and folder.path.name != candidate
    }
    if len(set(targets.values())) == 1:
        return min(targets)
    return CURRENT if CURRENT in targets else None


def _version_folder(path: Path) -> VersionFolder:
    target = path.resolve()
    return VersionFolder(path, target, _fingerprint(target))


def _has_manifest(path: Path) -> bool:
    # Loading a manifest that cannot be read, or is no file, will say so.
    try:
        (path / MANIFEST).lstat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _fingerprint(folder: Path) -> Fingerprint:
    """Reads the state of a folder and of what is in it; hidden files are not the version's."""
    found = []
    for path in (folder, *sorted(folder.rglob("*"))):
        place = path.relative_to(folder)
        if any(part.startswith(".") for part in place.parts):
            continue
        try:
            stat = path.stat()
        except OSError:  # being replaced, or a link to nothing
            continue
        times = stat.st_mtime_ns, 0 if S_ISDIR(stat.st_mode) else stat.st_ctime_ns
        if place.parts[:1] == (SPARE_TABLES,):
            times = 0, 0
        found.append((str(place), stat.st_dev, stat.st_ino, stat.st_size, *times))
    return tuple(found)


def changed_in_place(before: Fingerprint, after: Fingerprint) -> list[str]:
    """Lists the files that were written to after they were loaded, so that a mapping shows it."""
    new = {(device, inode): state for _, device, inode, *state in after}
    return [
        name
        for name, device, inode, *state in before
        if state[-1] and new.get((device, inode), state)[:2] != state[:2]
    ]

"""Folder of versions that follows a published pointer: downloads exports, applies deltas."""

import os
import shutil
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mail_torchrec.deltas.apply import apply_delta
from mail_torchrec.inference.artifact_files import FileInfo, checksum
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.publishing.pointer import LISTING, POINTER, Listing, Pointer, PublishedItem
from mail_torchrec.publishing.store import Store
from mail_torchrec.utils.file_lock import LOCK, lock_folder
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.uris import is_uri

logger = get_logger(__name__)

CURRENT = "current"
"""Link that chooses the serving version in a folder of versions."""
_FOLLOWED = ".followed"
"""File that names the store; only a folder with it loses versions."""
_NUM_DOWNLOADS = 4


class Follower:
    """Keeps local versions at the one that a published pointer names.

    Whatever is in a version's folder is whole: downloads and applied deltas are renamed into place,
    and the link :data:`CURRENT` is switched last. An update that fails leaves the versions as they
    are, and the next one goes on with the files that are there already.

    Args:
        store: the published folder.
        folder: local folder, used by nobody else.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.root, self._fetched = store, folder / "versions", folder / "fetched"
        self.root.mkdir(exist_ok=True)
        self.num_bytes = 0
        """Bytes downloaded so far, by which a watcher tells a long download from a stalled one."""
        self.num_updates = 0
        """Updates that succeeded."""

    @property
    def current(self) -> Path:
        """Link to the version that should serve."""
        return self.root / CURRENT

    def update(self, in_use: Collection[str] = ()) -> None:
        """Fetches what the pointer names, and deletes the versions that are needed no more.

        Args:
            in_use: versions that are served, or still have requests. Their folders stay: a version
                to come shares files with them, and may write where no folder's version reads.

        Raises:
            ValueError: there is no pointer, it leads to what is not there or damaged, a delta is
                refused, or the store is not reached.
            OSError: the disk is full.
        """
        pointer = self.store.pointer()
        if pointer is None:
            raise ValueError(
                f"'{self.store.name}' should be a folder that `mail-torchrec publish --to` wrote: "
                f"it has no {POINTER}; publish a full export there"
            )
        self._fetch(pointer, in_use)
        self._prune({pointer.version, *in_use})
        self.num_updates += 1

    def _fetch(self, pointer: Pointer, in_use: Collection[str]) -> None:
        """Adds what is missing between the newest version of the chain that is here and its end."""
        here = self._versions()
        known = [number for number, item in enumerate(pointer.chain) if item.version in here]
        if known:
            self._choose(pointer.chain[known[-1]].version)
        for item in pointer.chain[known[-1] + 1 if known else 0 :]:
            self._add(item)
            self._choose(item.version)
            self._prune({item.version, *in_use})
        shutil.rmtree(self._fetched, ignore_errors=True)

    def _versions(self) -> set[str]:
        """Lists the versions that are here; each folder has the name of its version."""
        return {
            path.name
            for path in self.root.iterdir()
            if not path.name.startswith(".") and not path.is_symlink() and path.is_dir()
        }

    def _add(self, item: PublishedItem) -> None:
        """Downloads a full export, or a delta that is applied."""
        before = self.num_bytes
        folder = self._fetched / Path(item.folder).name
        folder.mkdir(parents=True, exist_ok=True)
        self._download(item, LISTING, folder, item.listing)
        listing = Listing.model_validate_json((folder / LISTING).read_bytes())
        self._download_all(item, folder, listing.files)
        found = ArtifactManifest.read(folder).version
        if found != item.version:
            raise ValueError(
                f"'{self.store.label(item.folder)}' should be version {item.version}, it is "
                f"{found}; publish a full export"
            )
        if item.kind == "delta":
            apply_delta(folder, self.root, keep=sys.maxsize, name=item.version)
        else:
            (folder / LISTING).unlink()
            folder.rename(self.root / item.version)
        logger.info(
            "version %s fetched from %s: %s, %d bytes",
            item.version,
            self.store.name,
            "full export" if item.base is None else f"delta of {item.base}",
            self.num_bytes - before,
        )

    def _download_all(self, item: PublishedItem, folder: Path, files: dict[str, FileInfo]) -> None:
        with ThreadPoolExecutor(_NUM_DOWNLOADS) as pool:
            done = [
                pool.submit(self._download, item, name, folder, info)
                for name, info in files.items()
            ]
            try:
                for future in done:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _download(self, item: PublishedItem, name: str, folder: Path, expected: FileInfo) -> None:
        target = folder / name
        if target.exists() and checksum(target) == expected:
            return  # of an update that ended before its time
        target.parent.mkdir(parents=True, exist_ok=True)
        self.store.download(f"{item.folder}/{name}", target, expected, self._count)

    def _count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes  # of four threads: a part that is lost does no harm

    def _choose(self, version: str) -> None:
        """Switches the link to a version, atomically."""
        link, hidden = self.current, self.root / f".{CURRENT}"
        if link.is_symlink() and os.readlink(link) == version:
            return
        hidden.unlink(missing_ok=True)
        hidden.symlink_to(version)
        hidden.rename(link)

    def _prune(self, kept: Collection[str]) -> None:
        for version in self._versions() - set(kept):
            shutil.rmtree(self.root / version)


@contextmanager
def following(path: str, cache: Path | None) -> Iterator[Follower | None]:
    """Follows a published folder during the block; yields None for a folder of plain versions.

    Args:
        path: local folder or URI. A local one is followed where it has a pointer.
        cache: folder for the versions, which stay there; None takes a temporary one.

    Raises:
        ValueError: the cache is in use, or the path is no URI that can be followed.
    """
    if not is_uri(path) and not (Path(path) / POINTER).is_file():
        if cache is not None:
            raise ValueError(
                f"--cache is for what `publish` wrote, and '{path}' has no {POINTER}; leave it out"
            )
        Store.open(path, "--model")  # refuses what looks like a URI
        yield None
        return
    store = Store.open(path, "--model")
    if cache is not None:
        with lock_folder(cache):
            _mark(cache, store)
            yield Follower(store, cache)
    else:
        with TemporaryDirectory(prefix="mail-torchrec-serve-") as folder:
            yield Follower(store, Path(folder))


def _mark(cache: Path, store: Store) -> None:
    """Writes the store's name into an empty folder, or compares it."""
    mark = cache / _FOLLOWED
    if any(path.name not in (LOCK, _FOLLOWED) for path in cache.iterdir()) and not mark.exists():
        raise ValueError(f"--cache should be an empty folder, received '{cache}'; choose another")
    if not mark.exists():
        write_file(mark, store.name)
    elif (name := mark.read_text()) != store.name:
        raise ValueError(
            f"--cache '{cache}' has the versions of {name}, not of {store.name}; choose another"
        )

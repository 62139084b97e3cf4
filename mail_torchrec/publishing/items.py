"""Local folders that can be published: full exports and deltas, told apart by their files."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mail_torchrec.deltas.delta_manifest import DELTA, ROWS, DeltaManifest
from mail_torchrec.inference.artifact_files import MANIFEST, FileInfo, checksum
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.publishing.pointer import Listing, PublishedItem


@dataclass(frozen=True)
class LocalItem:
    """Full export or delta in a local folder."""

    folder: Path
    item: PublishedItem
    listing: Listing

    @property
    def listing_content(self) -> bytes:
        """Content of the list of files."""
        return _content(self.listing)


def read_item(folder: Path) -> LocalItem:
    """Reads and checks a folder; a full export also by its golden requests.

    Raises:
        ValueError: it is no full export and no delta, or damaged.
    """
    if (folder / ROWS).is_dir():  # a version that a delta made has its description, too
        delta = DeltaManifest.read(folder)
        delta.check_files(folder)
        listing = Listing(files={**delta.files, DELTA: checksum(folder / DELTA)})
        item = PublishedItem(
            kind="delta", version=delta.version, base=delta.base, listing=_info(listing)
        )
        return LocalItem(folder, item, listing)
    scorer = Scorer(folder)
    try:
        scorer.check_golden()
    except ValueError as error:
        raise ValueError(f"'{folder}': {error}; no server would take it, export anew") from error
    manifest = scorer.manifest
    # The manifest has the checksum of a table's rows, not of a file that has spare rows as well.
    spare = {
        file
        for table in manifest.tables.values()
        if table.spare is not None
        for file in table.files.values()
    }
    files = {
        name: checksum(folder / name)
        if name in spare or name not in manifest.files
        else manifest.files[name]
        for name in manifest.paths
    }
    for name in (DELTA, MANIFEST):
        if (folder / name).exists():
            files[name] = checksum(folder / name)
    listing = Listing(files=files)
    item = PublishedItem(kind="model", version=manifest.version, listing=_info(listing))
    return LocalItem(folder, item, listing)


def _content(listing: Listing) -> bytes:
    return listing.model_dump_json(indent=1).encode() + b"\n"


def _info(listing: Listing) -> FileInfo:
    content = _content(listing)
    return FileInfo(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

"""The ``mail-torchrec publish`` command: an export or delta to where servers look for it."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from mail_torchrec.inference.artifact_files import MANIFEST
from mail_torchrec.publishing.items import LocalItem, read_item
from mail_torchrec.publishing.pointer import LISTING, Pointer, extend_chain
from mail_torchrec.publishing.store import Store
from mail_torchrec.utils.file_lock import lock_folder
from mail_torchrec.utils.progress import progress_bar


@dataclass(frozen=True)
class Publication:
    """Result of publishing."""

    store: str
    """Path or URI, without credentials."""
    pointer: Pointer
    """The pointer that is there now."""
    num_files: int
    """Files that were copied; the others were there already."""
    num_bytes: int
    """Bytes that were copied."""

    def text(self) -> str:
        """Formats the result on one line."""
        item = self.pointer.chain[-1]
        kind = f"delta of {item.base}" if item.base else "full export"
        deltas = len(self.pointer.chain) - 1
        return (
            f"{self.store}: version {item.version} ({kind}) is current; {self.num_files} files, "
            f"{self.num_bytes:,} bytes copied; {deltas} deltas behind the full export"
        )


def publish(source: Path, to: str) -> Publication:
    """Copies an export or a delta into a published folder, and then points at it.

    The pointer is written last, so servers see the whole item or nothing of it. What a killed
    publication left is completed by the next one.

    Args:
        source: folder that ``export`` or ``export --delta-of`` wrote.
        to: folder or URI, which may have credentials.

    Raises:
        ValueError: the item is damaged, the store refuses, or a delta does not fit.
        OSError: the disk is full.
    """
    local, store = read_item(source), Store.open(to, "--to")
    if store.holds(MANIFEST):
        raise ValueError(
            f"--to should be a folder of its own for what is published, and '{store.name}' is an "
            "exported model; choose another"
        )
    is_local = store.location.is_local
    with lock_folder(Path(store.location.path)) if is_local else nullcontext():
        before = store.pointer()
        pointer = extend_chain(store.name, before, local.item)
        copied = _upload(local, store)
        if store.pointer() != before:
            raise ValueError(
                f"another job published to '{store.name}' meanwhile; publish again, one after "
                "another"
            )
        if pointer != before:
            store.write_pointer(pointer)
    return Publication(store.name, pointer, len(copied), sum(copied))


def _upload(local: LocalItem, store: Store) -> list[int]:
    """Copies the files that are not there yet; returns their sizes."""
    copied = []
    files = local.listing.files
    with progress_bar(
        total=sum(info.bytes for info in files.values()), unit="B", desc="publish", unit_scale=True
    ) as bar:
        for name, info in files.items():
            if store.upload(local.folder / name, f"{local.item.folder}/{name}", info):
                copied.append(info.bytes)
            bar.update(info.bytes)
    listing = local.item.listing
    if store.upload(local.listing_content, f"{local.item.folder}/{LISTING}", listing):
        copied.append(listing.bytes)
    return copied

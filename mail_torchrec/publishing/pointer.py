"""Pointer of a published folder: the version that should serve, and the items that lead to it."""

from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from mail_torchrec.inference.artifact_files import FileInfo
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.safe_paths import PlainName, PlainPath

POINTER = "current.json"
"""Name of the pointer, the one file of a published folder that is ever replaced."""
LISTING = "files.json"
"""List of an item's files with their sizes and checksums."""


class PublishedItem(Settings):
    """A full export or a delta in a published folder."""

    kind: Literal["model", "delta"]
    version: PlainName
    """Version that it is, or that it makes of its base."""
    base: str | None = Field(default=None, exclude_if=lambda base: base is None)
    """Version that a delta is applied to; None for a full export."""
    listing: FileInfo
    """Size and checksum of :data:`LISTING`, which has those of its files."""

    @property
    def folder(self) -> str:
        """Folder of its files; other content has another one, so no file is ever replaced."""
        return f"{self.kind}s/{self.version}-{self.listing.sha256[:12]}"


class Listing(Settings):
    """Files of a published item."""

    files: dict[PlainPath, FileInfo]
    """Size and checksum of each, as it is stored."""


class Pointer(Settings):
    """Chain from a full export over deltas to the version that should serve."""

    format: Literal[1] = 1
    chain: list[PublishedItem] = Field(min_length=1)
    """A full export, and the deltas to apply to it one after another."""

    @model_validator(mode="after")
    def _check_chain(self) -> Self:
        bases = [None, *(item.version for item in self.chain)]
        for item, base in zip(self.chain, bases, strict=False):
            if item.base != base or (item.kind == "model") != (base is None):
                raise ValueError(f"chain should lead from {base} to {item.version}")
        return self

    @classmethod
    def parse(cls, name: str, content: bytes) -> Self:
        """Parses a pointer.

        Args:
            name: of the file, for the message.
            content: of the file.

        Raises:
            ValueError: it is damaged, or of another format.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise ValueError(
                f"'{name}' is no pointer of format 1: {first_fault(error)}; publish a full export "
                "anew"
            ) from error

    @property
    def version(self) -> str:
        """Version that should serve."""
        return self.chain[-1].version


def extend_chain(name: str, pointer: Pointer | None, item: PublishedItem) -> Pointer:
    """Makes the pointer that leads to another item.

    A full export begins a new chain. A delta is put behind the version that it was made for.

    Args:
        name: published folder, for the message.
        pointer: of the folder; None where there is none yet.
        item: what is published.

    Raises:
        ValueError: a delta of another version than the one that is published.
    """
    if pointer is not None and item == pointer.chain[-1]:
        return pointer
    if item.kind == "model":
        return Pointer(chain=[item])
    if pointer is None:
        raise ValueError(
            f"'{name}' holds no model yet, and a delta needs the version {item.base} that it "
            "changes; publish that full export first"
        )
    if item.base != pointer.version:
        known = [one.version for one in pointer.chain]
        place = "an earlier one" if item.base in known or item.version in known else "another one"
        raise ValueError(
            f"the delta leads from version {item.base} to {item.version}, and '{name}' is at "
            f"version {pointer.version}, {place} is of no use there; make a delta of "
            f"{pointer.version}, or publish a full export"
        )
    return Pointer(chain=[*pointer.chain, item])

"""What stands beside an exported model: enough to send it raw values and to trust its files. Needs no torch."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError

from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.inference.requests import Input, Request, ValueType
from mail_torchrec.settings import Settings

MANIFEST, GOLDEN, VOCABULARIES, ONNX_MODEL = (
    "manifest.json",
    "golden.json",
    "vocabularies",
    "model.onnx",
)


class Output(Settings):
    """One output; all are float32."""

    name: str
    shape: tuple[int | str, ...]
    meaning: str


class TableInfo(Settings):
    """How the ids of one table become its rows, and where these lie."""

    ids: Literal["vocabulary", "hash"]
    rows: int
    dim: int
    vocabulary: str | None = None
    """File of the values in the order of their rows."""
    salt: str | None = None
    """Of the hash."""
    files: dict[str, str]
    """What an element is made of -> raw file: ``weight``, in int8 ``scale * weight + offset``;
    ``first_order`` where it stands apart."""


class Number(Settings):
    """How a numeric column becomes an input: ``(transform(value) - mean) / deviation``; null becomes 0."""

    transform: Literal["none", "log"]
    mean: float
    deviation: float


class FileInfo(Settings):
    """One file of the artefact."""

    bytes: int
    sha256: str


class Agreement(Settings):
    """How near the golden scores the artefact came when it was written."""

    bound: float
    largest_difference: float


class Manifest(Settings):
    """The whole description of an exported model."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        serialize_by_alias=True,
        protected_namespaces=(),
    )

    format: Literal[1] = 1
    name: str
    """The run's."""
    version: str
    """Made of the files' checksums: equal files have equal versions."""
    created: str
    """ISO 8601, UTC."""
    made_with: dict[str, str]
    """Library -> version."""
    tower: str
    table_type: Literal["float32", "float16", "int8"]
    metrics: dict[str, Any]
    """Of the training run, on its test data."""
    inputs: list[Input]
    """In the graph's order."""
    outputs: list[Output]
    new_users: dict[str, int | str]
    """``at_most_behaviours``, counted over all sequences; or ``input``, the one that says it."""
    unknown_row: int = 0
    """The table row of a value outside the vocabulary."""
    missing_row: int = 1
    """The table row of a null."""
    first_row: int = 2
    """Of a vocabulary's first value; a hashed one has ``first_row + hash64(value, salt) mod (rows -
    first_row)``."""
    lists: str = "the newest max_length entries are kept (they end with the newest), then padded behind with 0"
    hash: str = "hash64 of mail_torchrec/data/ids/hashing.py: splitmix64's finaliser of (value xor FNV-1a of the salt), strings as their FNV-1a"
    tables: dict[str, TableInfo]
    numbers: dict[str, Number]
    types: dict[str, ValueType]
    """Raw column -> what its values (a list's elements) are; they hash by it."""
    schema_: Schema = Field(alias="schema")
    agreement: dict[str, Agreement]
    """Format -> how it agreed with the trainer on the golden requests."""
    files: dict[str, FileInfo]
    """Every other file, by its path in the folder."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the manifest of an artefact's folder.

        Raises:
            ValueError: there is none, or it is none of this format.
        """
        try:
            return cls.model_validate_json((folder / MANIFEST).read_text())
        except OSError as error:
            raise ValueError(
                f"'{folder}' should be what `mail-torchrec export` wrote: no {MANIFEST} there "
                f"({error.strerror})"
            ) from error
        except ValidationError as error:
            raise ValueError(
                f"'{folder / MANIFEST}' is no manifest of format 1: {error}"
            ) from error

    def write(self, folder: Path) -> None:
        """Writes it into the artefact's folder."""
        (folder / MANIFEST).write_text(self.model_dump_json(indent=1) + "\n")

    def check_files(self, folder: Path) -> None:
        """Compares every file with its checksum.

        Raises:
            ValueError: a file is missing or is another one.
        """
        for name, expected in self.files.items():
            if not (folder / name).is_file():
                raise ValueError(
                    f"'{folder}' should hold '{name}': it is missing; copy the folder whole"
                )
            if checksum(folder / name) != expected:
                raise ValueError(
                    f"'{folder / name}' is not the file that was exported (its checksum differs); "
                    "copy or export it anew"
                )


def checksum(path: Path) -> FileInfo:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return FileInfo(
            bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest()
        )


def checksums(folder: Path) -> dict[str, FileInfo]:
    """Of every file below a folder."""
    return {
        str(path.relative_to(folder)): checksum(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def version_of(files: dict[str, FileInfo]) -> str:
    """A short name that equal files have in common."""
    text = "".join(f"{name} {info.sha256}\n" for name, info in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_golden(folder: Path, requests: Iterable[Request], scores: dict[str, list[float]]) -> None:
    """Writes golden requests, each with its part of the scores, which are those of all candidates end to end."""
    golden, start = [], 0
    for request in requests:
        stop = start + len(request.candidates)
        of_request = {name: values[start:stop] for name, values in scores.items()}
        golden.append(
            {"user": request.user, "candidates": list(request.candidates), "scores": of_request}
        )
        start = stop
    (folder / GOLDEN).write_text(json.dumps(golden, indent=1, allow_nan=False) + "\n")


def read_golden(folder: Path) -> list[tuple[Request, dict[str, list[float]]]]:
    """The golden requests and their scores."""
    return [
        (Request(entry["user"], entry["candidates"]), entry["scores"])
        for entry in json.loads((folder / GOLDEN).read_text())
    ]

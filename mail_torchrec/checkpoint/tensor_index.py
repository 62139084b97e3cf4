"""Index of a checkpoint's tensors: ``tensors.json``, which says where each number lies.

Needs no torch. The index is written beside DCP's ``.metadata``, and read in its place: that file is
a pickle, which can run code. Tensors are read as plain numbers from the places in the index; what
pickles their files hold around them is not looked at.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from mail_torchrec.records.checksums import check_missing
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.safe_paths import PlainName, open_regular, read_document

INDEX = "tensors.json"
DtypeName = Literal[
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"
]
ITEM_BYTES: dict[DtypeName, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of a number of each type."""
_Count = Annotated[int, Field(ge=0, lt=2**62)]
_Counts = Annotated[tuple[_Count, ...], Field(max_length=8)]
_Sizes = Annotated[tuple[Annotated[int, Field(ge=1, lt=2**62)], ...], Field(max_length=8)]


class StoredChunk(Settings):
    """Part of a tensor in a file: its numbers row by row, little-endian, one after another."""

    file: PlainName
    position: _Count
    """Place of the first byte in the file."""
    offsets: _Counts
    """Place of the chunk in the tensor, by dimension."""
    sizes: _Sizes

    @property
    def volume(self) -> int:
        """Number of numbers."""
        return math.prod(self.sizes)


class StoredTensor(Settings):
    """Type and size of a tensor, and its chunks, which cover it without overlap."""

    dtype: DtypeName
    size: _Counts
    """Global size."""
    chunks: tuple[StoredChunk, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all numbers."""
        return math.prod(self.size) * ITEM_BYTES[self.dtype]


class TensorIndex(Settings):
    """Content of ``tensors.json``."""

    tensors: dict[str, StoredTensor]

    @property
    def files(self) -> set[str]:
        """Names of the files that hold numbers."""
        return {chunk.file for tensor in self.tensors.values() for chunk in tensor.chunks}

    def check(self, folder: Path) -> None:
        """Checks that chunks cover their tensors, and that every byte is there and used once.

        So a tensor is never larger than the files that it is read from.

        Raises:
            ValueError: a chunk lies outside of its tensor or file, some overlap or are missing, or
                a file is no regular file.
        """
        for key, tensor in self.tensors.items():
            if fault := _tiling_fault(tensor):
                raise ValueError(f"tensor '{key}' {fault}")
        places: dict[str, list[tuple[int, int]]] = {name: [] for name in self.files}
        for tensor in self.tensors.values():
            for chunk in tensor.chunks:
                stop = chunk.position + chunk.volume * ITEM_BYTES[tensor.dtype]
                places[chunk.file].append((chunk.position, stop))
        for name, of_file in places.items():
            with open_regular(folder / name) as file:
                size = file.seek(0, 2)
            of_file.sort()
            overlaps = any(stop > start for (_, stop), (start, _) in pairwise(of_file))
            if overlaps or of_file[-1][1] > size:
                raise ValueError(
                    f"it names bytes of '{name}' twice or behind its end (of {size:,} bytes)"
                )


def read_index(folder: Path) -> TensorIndex:
    """Reads and checks the index of a checkpoint.

    Raises:
        ValueError: it is missing or damaged, or does not fit the files; the message is one line.
    """
    path = folder / INDEX
    try:
        index = TensorIndex.model_validate_json(read_document(path), strict=True)
        index.check(folder)
    except ValidationError as error:
        raise ValueError(f"'{path}' is damaged: {first_fault(error)}") from error
    except FileNotFoundError as error:
        check_missing(folder, Path(error.filename).name)
        raise ValueError(f"'{error.filename}' is missing") from error
    except ValueError as error:
        raise ValueError(f"'{path}' cannot be used: {error}") from error
    return index


def _tiling_fault(tensor: StoredTensor) -> str | None:
    """Describes why chunks do not cover a tensor without overlap; None where they do."""
    for chunk in tensor.chunks:
        places = zip(chunk.offsets, chunk.sizes, tensor.size, strict=False)
        dims = {len(chunk.offsets), len(chunk.sizes), len(tensor.size)}
        if len(dims) > 1 or any(offset + size > whole for offset, size, whole in places):
            return f"of size {tensor.size} has a chunk {chunk.sizes} at {chunk.offsets}, outside"
    if sum(chunk.volume for chunk in tensor.chunks) != math.prod(tensor.size):
        return f"of size {tensor.size} is not covered by its chunks"
    by_row = sorted(tensor.chunks, key=lambda chunk: chunk.offsets)
    return "has chunks that overlap" if len(by_row) > 1 and _overlap(by_row) else None


def _overlap(chunks: Iterable[StoredChunk]) -> bool:
    """Tells if two chunks share a number; they come in the order of their first rows."""
    reaching: list[StoredChunk] = []  # those that end behind the row that is looked at
    for chunk in chunks:
        reaching = [x for x in reaching if x.offsets[0] + x.sizes[0] > chunk.offsets[0]]
        if any(_meet(other, chunk) for other in reaching):
            return True
        reaching.append(chunk)
    return False


def _meet(one: StoredChunk, other: StoredChunk) -> bool:
    return all(
        max(a, b) < min(a + size_a, b + size_b)
        for a, size_a, b, size_b in zip(
            one.offsets, one.sizes, other.offsets, other.sizes, strict=True
        )
    )

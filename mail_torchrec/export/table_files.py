"""Embedding tables as raw files, row by row: float32 as trained, float16, or int8 with a scale and an offset a row."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

TableType = Literal["float32", "float16", "int8"]
_TORCH = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class RawFile:
    """One array in a file of its own, row-major, little-endian."""

    path: Path
    dtype: Literal["float32", "float16", "uint8"]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def create(self) -> None:
        """Makes the file, as zeros that take no space yet."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("wb") as file:
            file.truncate(self.num_bytes)

    def rows(self, start: int, stop: int, mode: Literal["r", "r+"] = "r") -> npt.NDArray[Any]:
        """Some rows, mapped: what was touched of them counts as this process's memory until they are dropped."""
        row = self.num_bytes // max(self.shape[0], 1)
        return np.memmap(
            self.path,
            dtype=self.dtype,
            mode=mode,
            offset=start * row,
            shape=(stop - start, *self.shape[1:]),
        )

    def tensor(self) -> Tensor:
        """The whole array, mapped."""
        flat = torch.from_file(
            str(self.path), shared=False, size=int(np.prod(self.shape)), dtype=_TORCH[self.dtype]
        )
        return flat.view(self.shape)

    def chunks(self) -> list[tuple[int, int]]:
        """Runs of rows that are small enough to be in memory."""
        row = max(self.num_bytes // max(self.shape[0], 1), 1)
        step = max(_CHUNK_BYTES // row, 1)
        return [
            (start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step)
        ]

    def write(self, part: Tensor, first_row: int, first_column: int) -> None:
        """Writes a part of the array; what lies outside it is left out (a table may be stored with more rows and columns than it uses)."""
        part = part[: max(self.shape[0] - first_row, 0), : max(self.shape[1] - first_column, 0)]
        if not part.numel():
            return
        for start, stop in RawFile(self.path, self.dtype, (len(part), self.shape[1])).chunks():
            rows = self.rows(first_row + start, first_row + stop, "r+")
            rows[:, first_column : first_column + part.shape[1]] = part[start:stop].numpy()


@dataclass(frozen=True)
class TableFiles:
    """The files of one table. ``weight`` [rows, columns]; for int8 also ``scale`` and ``offset`` [rows, 1] and what is not quantised."""

    weight: RawFile
    scale: RawFile | None = None
    offset: RawFile | None = None
    first_order: RawFile | None = None

    @property
    def by_name(self) -> dict[str, RawFile]:
        """The files that there are."""
        parts = {
            "weight": self.weight,
            "scale": self.scale,
            "offset": self.offset,
            "first_order": self.first_order,
        }
        return {name: file for name, file in parts.items() if file is not None}


def converted(stored: RawFile, dim: int, table_type: TableType) -> TableFiles:
    """A float32 table in another type, its float32 file removed; a first-order weight behind the ``dim`` columns stays as it is in int8.

    int8: ``value = scale * q + offset`` with q from 0 to 255 between the least and the greatest
        element of the row.
    """
    if table_type == "float32":
        return TableFiles(stored)
    base = stored.path.with_suffix("")
    if table_type == "float16":
        files = TableFiles(RawFile(base.with_suffix(".float16"), "float16", stored.shape))
    else:
        rows, width = stored.shape
        files = TableFiles(
            RawFile(base.with_suffix(".uint8"), "uint8", (rows, dim)),
            RawFile(base.with_suffix(".scale"), "float32", (rows, 1)),
            RawFile(base.with_suffix(".offset"), "float32", (rows, 1)),
            RawFile(base.with_suffix(".first_order"), "float32", (rows, 1))
            if width > dim
            else None,
        )
    for file in files.by_name.values():
        file.create()
    for start, stop in stored.chunks():
        values = stored.rows(start, stop)
        for name, part in (
            _quantised(values, dim) if table_type == "int8" else {"weight": _half(values)}
        ).items():
            files.by_name[name].rows(start, stop, "r+")[:] = part
    stored.path.unlink()
    return files


def _half(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    largest = float(np.finfo(np.float16).max)
    return values.clip(-largest, largest).astype(np.float16)


def _quantised(values: npt.NDArray[np.float32], dim: int) -> dict[str, npt.NDArray[Any]]:
    vectors = values[:, :dim]
    low, high = vectors.min(axis=1, keepdims=True), vectors.max(axis=1, keepdims=True)
    scale = np.where(high > low, (high - low) / 255, 1.0).astype(np.float32)
    steps = np.rint((vectors - low) / scale).clip(0, 255).astype(np.uint8)
    parts: dict[str, npt.NDArray[Any]] = {"weight": steps, "scale": scale, "offset": low}
    return parts | ({"first_order": values[:, dim:]} if values.shape[1] > dim else {})


class Table(nn.Module):
    """Looks rows up, [...] -> float32 [..., columns], first-order weight last where there is one.

    Args:
        files: of the table; they are mapped, not read.
    """

    weight: Tensor
    scale: Tensor
    offset: Tensor
    first_order: Tensor

    def __init__(self, files: TableFiles) -> None:
        super().__init__()
        self._parts = set(files.by_name)
        for name, file in files.by_name.items():
            self.register_buffer(name, file.tensor())

    def forward(self, ids: Tensor) -> Tensor:
        """Gathers, then converts what was gathered."""
        vectors = functional.embedding(ids, self.weight).float()
        if "scale" in self._parts:
            vectors = vectors * functional.embedding(ids, self.scale) + functional.embedding(
                ids, self.offset
            )
        if "first_order" in self._parts:
            vectors = torch.cat([vectors, functional.embedding(ids, self.first_order)], dim=-1)
        return vectors

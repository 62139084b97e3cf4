"""Embedding tables as raw files, row by row.

Elements are float32 as trained, float16, or int8 with a scale and an offset a row.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

TableType = Literal["float32", "float16", "int8"]
FileDtype = Literal["float32", "float16", "uint8", "int32", "int64"]
_TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
}
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TableFile:
    """One array in a file of its own, row-major, little-endian."""

    path: Path
    dtype: FileDtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def create(self) -> None:
        """Creates the file, filled with zeros that take no disk space yet."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("wb") as file:
            file.truncate(self.num_bytes)

    def rows(self, start: int, stop: int, mode: Literal["r", "r+"] = "r") -> npt.NDArray[Any]:
        """Maps some rows, [stop - start, ...].

        Touched pages count as this process's memory until the array is dropped.
        """
        row_bytes = self.num_bytes // max(self.shape[0], 1)
        return np.memmap(
            self.path,
            dtype=self.dtype,
            mode=mode,
            offset=start * row_bytes,
            shape=(stop - start, *self.shape[1:]),
        )

    def tensor(self) -> Tensor:
        """Maps the whole array, of :attr:`shape`."""
        size, dtype = int(np.prod(self.shape)), _TORCH[self.dtype]
        flat = torch.from_file(str(self.path), shared=False, size=size, dtype=dtype)
        return flat.view(self.shape)

    def chunks(self) -> list[tuple[int, int]]:
        """Lists ranges of rows that are small enough to be in memory."""
        num_rows = self.shape[0]
        row_bytes = max(self.num_bytes // max(num_rows, 1), 1)
        step = max(_CHUNK_BYTES // row_bytes, 1)
        return [(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]

    def write_shard(self, shard: Tensor, first_row: int, first_column: int) -> None:
        """Writes a shard of the array.

        What lies outside the array is dropped: a table may be stored with more rows and columns
        than it uses.

        Args:
            shard: [rows, columns] of the stored table.
            first_row: row of the array at which the shard begins.
            first_column: column of the array at which it begins.
        """
        num_rows, num_columns = self.shape
        shard = shard[: max(num_rows - first_row, 0), : max(num_columns - first_column, 0)]
        if not shard.numel():
            return
        columns = slice(first_column, first_column + shard.shape[1])
        for start, stop in TableFile(self.path, self.dtype, (len(shard), num_columns)).chunks():
            rows = self.rows(first_row + start, first_row + stop, "r+")
            rows[:, columns] = shard[start:stop].numpy()


@dataclass(frozen=True)
class TableFiles:
    """Files of one table: ``weight`` [rows, columns], and in int8 what it is decoded with."""

    weight: TableFile
    scale: TableFile | None = None
    """[rows, 1]."""
    offset: TableFile | None = None
    """[rows, 1]."""
    first_order: TableFile | None = None
    """First-order weights [rows, 1], which are not quantised."""
    positions: TableFile | None = None
    """Place of each row in the files above [rows, 1]; None where they hold the rows in order."""

    @property
    def buffers(self) -> dict[str, TableFile]:
        """Files that a lookup reads, by field."""
        positions = {} if self.positions is None else {"positions": self.positions}
        return positions | self.by_name

    @property
    def by_name(self) -> dict[str, TableFile]:
        """Files that hold the parts of the table's elements, by field."""
        parts = {
            "weight": self.weight,
            "scale": self.scale,
            "offset": self.offset,
            "first_order": self.first_order,
        }
        return {name: file for name, file in parts.items() if file is not None}


def convert_table(stored: TableFile, dim: int, table_type: TableType) -> TableFiles:
    """Converts a float32 table to another type, and deletes its float32 file.

    In int8 an element is ``scale * q + offset``, with q from 0 to 255 between the least and the
    greatest element of the row. A first-order weight, behind the ``dim`` columns, stays float32
    there.

    Args:
        stored: float32 table.
        dim: number of columns of the embedding.
        table_type: type to convert to.
    """
    if table_type == "float32":
        return TableFiles(stored)
    files = _converted_files(stored, dim, table_type)
    for file in files.by_name.values():
        file.create()
    for start, stop in stored.chunks():
        values = stored.rows(start, stop)
        parts = _quantised(values, dim) if table_type == "int8" else {"weight": _half(values)}
        for name, part in parts.items():
            files.by_name[name].rows(start, stop, "r+")[:] = part
    stored.path.unlink()
    return files


def _converted_files(stored: TableFile, dim: int, table_type: TableType) -> TableFiles:
    rows, width = stored.shape

    def file(suffix: str, dtype: FileDtype, columns: int) -> TableFile:
        return TableFile(stored.path.with_suffix(f".{suffix}"), dtype, (rows, columns))

    if table_type == "float16":
        return TableFiles(file("float16", "float16", width))
    return TableFiles(
        file("uint8", "uint8", dim),
        file("scale", "float32", 1),
        file("offset", "float32", 1),
        file("first_order", "float32", 1) if width > dim else None,
    )


def _half(values_RS: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    largest = float(np.finfo(np.float16).max)
    return values_RS.clip(-largest, largest).astype(np.float16)


def _quantised(values_RS: npt.NDArray[np.float32], dim: int) -> dict[str, npt.NDArray[Any]]:
    vectors_RD = values_RS[:, :dim]
    low_R1, high_R1 = vectors_RD.min(axis=1, keepdims=True), vectors_RD.max(axis=1, keepdims=True)
    scale_R1 = np.where(high_R1 > low_R1, (high_R1 - low_R1) / 255, 1.0).astype(np.float32)
    steps_RD = np.rint((vectors_RD - low_R1) / scale_R1).clip(0, 255).astype(np.uint8)
    parts: dict[str, npt.NDArray[Any]] = {"weight": steps_RD, "scale": scale_R1, "offset": low_R1}
    return parts | ({"first_order": values_RS[:, dim:]} if values_RS.shape[1] > dim else {})


class GatherTable(nn.Module):
    """Embedding table of the inference model, mapped from its files; dequantises int8.

    Args:
        files: files of the table; they are mapped, not read.
    """

    weight: Tensor
    """Stored elements, [rows, columns]."""
    scale: Tensor
    """Of int8, [rows, 1]."""
    offset: Tensor
    """Of int8, [rows, 1]."""
    first_order: Tensor
    """First-order weights stored apart, [rows, 1]."""
    positions: Tensor
    """Place of each row, where the rows are not in order, [rows, 1]."""

    def __init__(self, files: TableFiles) -> None:
        super().__init__()
        self._parts = set(files.buffers)
        for name, file in files.buffers.items():
            self.register_buffer(name, file.tensor())

    def forward(self, ids: Tensor) -> Tensor:
        """Gathers rows and converts them, with the first-order weight last where there is one.

        Args:
            ids: rows of the table, [...].

        Returns:
            float32 [..., columns].
        """
        if "positions" in self._parts:
            ids = functional.embedding(ids, self.positions).squeeze(-1)
        vectors = functional.embedding(ids, self.weight).float()
        if "scale" in self._parts:
            scale, offset = (functional.embedding(ids, x) for x in (self.scale, self.offset))
            vectors = vectors * scale + offset
        if "first_order" in self._parts:
            vectors = torch.cat([vectors, functional.embedding(ids, self.first_order)], dim=-1)
        return vectors

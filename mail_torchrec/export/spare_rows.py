"""Spare rows in the files of exported tables, for rows of later versions."""

import os
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np

from mail_torchrec.export.table_files import TableFile, TableFiles
from mail_torchrec.inference.artifact_files import FileInfo, checksums
from mail_torchrec.inference.tables.table_info import SpareRows, TableInfo
from mail_torchrec.inference.tables.table_rows import (
    POSITIONS,
    SPARE_TABLES,
    content_checksum,
    positions_dtype,
    stored_positions,
)

_MIN_CAPACITY = 1025
"""Least rows of a file. The exporter merges equal constants of up to 1,024 elements, and two tables
that are equal today will not be tomorrow."""


def capacity_of(num_rows: int, share: float) -> int:
    """Returns the rows of a table's files, a share of the table's own among them spare."""
    return max(num_rows + ceil(num_rows * share), _MIN_CAPACITY)


def add_spare_rows(
    tables: Mapping[str, TableFiles], capacities: Mapping[str, int], folder: Path
) -> dict[str, TableFiles]:
    """Extends the files of tables, which take no disk space for it yet, and gives them positions.

    Args:
        tables: files of each table, with its rows in order.
        capacities: rows that the files of each table should have.
        folder: folder of the artefact.
    """
    (folder / POSITIONS).mkdir()
    return {
        name: _extended(name, files, capacities[name], folder) for name, files in tables.items()
    }


def _extended(name: str, files: TableFiles, capacity: int, folder: Path) -> TableFiles:
    num_rows = files.weight.shape[0]
    parts = {part: _extend(file, capacity) for part, file in files.by_name.items()}
    dtype = positions_dtype(capacity)
    path = folder / POSITIONS / f"{name}.{dtype}"
    path.write_bytes(stored_positions(np.arange(num_rows, dtype=dtype), capacity))
    return replace(files, **parts, positions=TableFile(path, dtype, (capacity, 1)))


def _extend(file: TableFile, capacity: int) -> TableFile:
    extended = replace(file, shape=(capacity, *file.shape[1:]))
    os.truncate(extended.path, extended.num_bytes)
    return extended


def spare_info(files: TableFiles, folder: Path) -> SpareRows | None:
    """Describes the spare rows of a table; None where it has none."""
    if files.positions is None:
        return None
    return SpareRows(
        capacity=files.positions.shape[0], positions=str(files.positions.path.relative_to(folder))
    )


def artifact_checksums(folder: Path, tables: Mapping[str, TableInfo]) -> dict[str, FileInfo]:
    """Computes the checksums of an artefact's files; of tables with spare rows, of their rows."""
    files = checksums(folder, skipped=(SPARE_TABLES, POSITIONS))
    for table in tables.values():
        if table.spare is not None:
            for part, file in table.files.items():
                size, sha256 = content_checksum(folder, table, part)
                files[file] = FileInfo(bytes=size, sha256=sha256)
    return files

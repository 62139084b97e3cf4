"""Rows of tables with spare rows: positions, and the content of the files in the order of ids.

Versions of a model share such files by hard links. Each has its rows at positions of its own, so a
checksum of the whole file would change with every version that is added.

Shapes: ``R`` rows, ``S`` bytes of a row.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mail_torchrec.inference.tables.table_info import SpareRows, TableInfo
from mail_torchrec.utils.safe_paths import open_regular

Positions = npt.NDArray[Any]
"""Place of each row of a table in its files, [rows], int32 or int64."""
Bytes = npt.NDArray[np.uint8]
"""Stored bytes of rows."""

SPARE_TABLES = "spare_tables"
"""Folder of the files with spare rows. Their times say nothing: rows of other versions are written
into them."""
POSITIONS = "positions"
"""Folder of the positions."""
_CHUNK_BYTES = 16 * 2**20


def positions_dtype(capacity: int) -> Literal["int32", "int64"]:
    """Chooses the type of the positions in files of so many rows."""
    return "int32" if capacity <= np.iinfo(np.int32).max else "int64"


def read_positions(folder: Path, table: TableInfo) -> Positions:
    """Reads the positions [R] of a table with spare rows.

    Raises:
        ValueError: the file is missing, of another size, or leads out of the table's files.
    """
    spare = _spare(table)
    path, dtype = folder / spare.positions, np.dtype(positions_dtype(spare.capacity))
    try:
        with open_regular(path, follow_link=True) as file:
            stored = file.read(spare.capacity * dtype.itemsize + 1)
    except FileNotFoundError as error:
        raise ValueError(
            f"'{folder}' should hold '{spare.positions}': it is missing; copy the folder whole"
        ) from error
    if len(stored) != spare.capacity * dtype.itemsize:
        raise ValueError(
            f"'{path}' should have {spare.capacity * dtype.itemsize} bytes, found {len(stored)}; "
            "copy or export it anew"
        )
    positions_R = np.frombuffer(stored, dtype)[: table.rows]
    if len(positions_R) and not 0 <= positions_R.min() <= positions_R.max() < spare.capacity:
        raise ValueError(
            f"'{path}' should hold numbers from 0 to {spare.capacity - 1:,}; it is damaged, copy "
            "or export it anew"
        )
    return positions_R


def stored_positions(positions_R: Positions, capacity: int) -> bytes:
    """Formats positions [R] as their file, filled up with zeros."""
    stored = np.zeros(capacity, positions_dtype(capacity))
    stored[: len(positions_R)] = positions_R
    return stored.tobytes()


def map_rows(path: Path, capacity: int) -> Bytes:
    """Maps a file with spare rows, [capacity, S].

    Raises:
        ValueError: it has no such size.
    """
    with open_regular(path, follow_link=True) as file:
        size = os.fstat(file.fileno()).st_size
        if size % capacity or not size:
            raise ValueError(
                f"'{path}' should hold {capacity:,} rows, it has {size:,} bytes; copy or export "
                "it anew"
            )
        return np.memmap(file, np.uint8, "r", shape=(capacity, size // capacity))


def rows_in_order(path: Path, positions_R: Positions, capacity: int) -> Iterator[Bytes]:
    """Yields the rows of a file in the order of ids, chunk by chunk, each [rows, S].

    Raises:
        ValueError: the file is of another size.
    """
    stored = map_rows(path, capacity)
    step = max(_CHUNK_BYTES // stored.shape[1], 1)
    for start in range(0, len(positions_R), step):
        places = positions_R[start : start + step]
        first = int(places[0])
        is_run = bool((np.diff(places) == 1).all())
        yield stored[first : first + len(places)] if is_run else stored[places]


def content_checksum(folder: Path, table: TableInfo, part: str) -> tuple[int, str]:
    """Computes size and SHA-256 of the rows of a table, in order, as its file without spare rows.

    Raises:
        ValueError: the positions or the file are damaged.
        FileNotFoundError: the file is missing.
    """
    positions_R = read_positions(folder, table)
    sha256, size = hashlib.sha256(), 0
    path = folder / table.files[part]
    for rows in rows_in_order(path, positions_R, _spare(table).capacity):
        content = np.ascontiguousarray(rows)
        sha256.update(content.data)
        size += content.nbytes
    return size, sha256.hexdigest()


def _spare(table: TableInfo) -> SpareRows:
    assert table.spare is not None
    return table.spare

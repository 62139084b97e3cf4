"""Rows of a table that differ between two versions, and their files in a delta.

Shapes: ``R`` rows of a table, ``C`` changed rows, ``S`` bytes of a row.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mail_torchrec.deltas.delta_manifest import ROWS
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.tables.table_info import TableInfo
from mail_torchrec.inference.tables.table_rows import (
    Bytes,
    map_rows,
    read_positions,
    rows_in_order,
)

Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
_CHUNK_BYTES = 16 * 2**20


def check_same_tables(base: ArtifactManifest, manifest: ArtifactManifest) -> None:
    """Checks that two versions can share their tables.

    Raises:
        ValueError: they have other tables, or of other sizes.
    """
    before, after = ({n: _form(t) for n, t in one.tables.items()} for one in (base, manifest))
    if None in before.values():
        raise ValueError(
            f"version {base.version} was exported without spare rows, so that there are no deltas "
            "to it; export it with --spare 0.2"
        )
    if changes := [name for name in sorted(before | after) if before.get(name) != after.get(name)]:
        raise ValueError(
            f"tables {', '.join(changes)} have other rows, columns or types than those of version "
            f"{base.version}: a full export is due"
        )


def _form(table: TableInfo) -> tuple[object, ...] | None:
    if table.spare is None:
        return None
    return table.rows, table.dim, table.spare.capacity, sorted(table.files.items())


def differing_rows(base: Path, base_table: TableInfo, folder: Path, table: TableInfo) -> Rows:
    """Finds the rows [C] of a table of which any part differs, byte by byte, ascending.

    Args:
        base: folder of the base, with its tables.
        base_table: the table there, with as many rows, and rows of the same sizes.
        folder: folder of the other version.
        table: the table there.
    """
    assert base_table.spare is not None and table.spare is not None
    before_R, after_R = read_positions(base, base_table), read_positions(folder, table)
    is_changed_R = np.zeros(table.rows, bool)
    for part, file in table.files.items():
        before = rows_in_order(base / base_table.files[part], before_R, base_table.spare.capacity)
        after = rows_in_order(folder / file, after_R, table.spare.capacity)
        start = 0
        for old, new in zip(before, after, strict=True):
            is_changed_R[start : start + len(new)] |= (old != new).any(axis=1)
            start += len(new)
    return np.flatnonzero(is_changed_R)


def write_changed(folder: Path, table: TableInfo, rows_C: Rows, out: Path, name: str) -> None:
    """Writes changed rows of a version into a delta: their numbers, and each part's bytes.

    Args:
        folder: folder of the version.
        table: the table there.
        rows_C: changed rows, ascending.
        out: folder of the delta.
        name: name of the table.
    """
    assert table.spare is not None
    (out / ROWS).mkdir(exist_ok=True)
    numbers_path(out, name).write_bytes(rows_C.astype("<i8").tobytes())
    places_C = read_positions(folder, table)[rows_C]
    for part, file in table.files.items():
        stored = map_rows(folder / file, table.spare.capacity)
        step = max(_CHUNK_BYTES // stored.shape[1], 1)
        with part_path(out, name, part).open("wb") as target:
            for start in range(0, len(places_C), step):
                target.write(stored[places_C[start : start + step]].tobytes())


def read_changed(delta: Path, name: str, table: TableInfo, num_changed: int) -> Rows:
    """Reads the numbers [C] of a table's changed rows.

    Raises:
        ValueError: they are no rows of the table.
    """
    path = numbers_path(delta, name)
    rows_C = np.frombuffer(path.read_bytes(), "<i8").astype(np.int64)
    is_ascending = bool((np.diff(rows_C) > 0).all())
    is_inside = not len(rows_C) or 0 <= rows_C[0] <= rows_C[-1] < table.rows
    if len(rows_C) != num_changed or not (is_ascending and is_inside):
        raise ValueError(
            f"'{path}' should hold {num_changed:,} rows of table '{name}', ascending and below "
            f"{table.rows:,}; export the delta anew"
        )
    return rows_C


def map_changed(delta: Path, name: str, part: str, num_changed: int) -> Bytes:
    """Maps the bytes [C, S] of one part of the changed rows, of which there are some.

    Raises:
        ValueError: the file is of another size.
    """
    return map_rows(part_path(delta, name, part), num_changed)


def numbers_path(delta: Path, table: str) -> Path:
    """Returns the file of the numbers of a table's changed rows."""
    return delta / ROWS / f"{table}.int64"


def part_path(delta: Path, table: str, part: str) -> Path:
    """Returns the file of one part of a table's changed rows."""
    return delta / ROWS / f"{table}.{part}"

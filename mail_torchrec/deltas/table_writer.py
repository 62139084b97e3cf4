"""Tables of a new version: the base's files with changed rows in places that no version uses.

Shapes: ``R`` rows of a table, ``C`` changed rows, ``S`` bytes of a row, ``P`` rows of its files.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mail_torchrec.deltas.changed_rows import Flags, Rows, map_changed
from mail_torchrec.inference.tables.table_info import TableInfo
from mail_torchrec.inference.tables.table_rows import (
    Bytes,
    Positions,
    positions_dtype,
    read_positions,
    rows_in_order,
    stored_positions,
)
from mail_torchrec.utils.run_files import named_errors

SMALL_TABLE_BYTES = 64 * 2**20
"""Tables up to this size are written anew where their spare rows do not suffice."""


@dataclass(frozen=True)
class TableChange:
    """Changed rows of one table, and where they are to be written."""

    name: str
    base: Path
    """Folder of the base."""
    base_table: TableInfo
    table: TableInfo
    """The table in the new version."""
    delta: Path
    """Folder of the delta."""
    rows_C: Rows
    """Changed rows."""
    places_C: Positions | None
    """Unused rows of the base's files, for the changed ones; None writes new files."""

    def write(self, folder: Path) -> None:
        """Writes the table's files into the folder of the new version.

        Raises:
            OSError: they cannot be written.
            ValueError: rows in the delta are of another size than the table's.
        """
        for file in (*self.table.files.values(), self.positions):
            (folder / file).parent.mkdir(exist_ok=True)
        positions_R = read_positions(self.base, self.base_table)
        if self.places_C is None:
            for part in self.table.files:
                self._write_anew(folder, part, positions_R)
            new_R = np.arange(self.table.rows, dtype=positions_R.dtype)
        else:
            for part in self.table.files:
                self._write_changed(folder, part)
            new_R = positions_R.copy()
            new_R[self.rows_C] = self.places_C
        _write_synced(folder / self.positions, [stored_positions(new_R, self._capacity)])

    @property
    def positions(self) -> str:
        """File of the positions."""
        assert self.table.spare is not None
        return self.table.spare.positions

    @property
    def _capacity(self) -> int:
        assert self.table.spare is not None
        return self.table.spare.capacity

    def _changed(self, part: str, row_bytes: int) -> Bytes:
        """Maps the changed rows [C, S] of a part, of which there are some."""
        rows_CS = map_changed(self.delta, self.name, part, len(self.rows_C))
        if rows_CS.shape[1] != row_bytes:
            raise ValueError(
                f"table '{self.name}': rows of '{part}' should have {row_bytes} bytes, received "
                f"{rows_CS.shape[1]} in the delta; export the delta anew"
            )
        return rows_CS

    def _write_changed(self, folder: Path, part: str) -> None:
        """Links a file of the base, and writes the changed rows into unused places of it."""
        path = folder / self.table.files[part]
        os.link((self.base / self.base_table.files[part]).resolve(), path)
        if not len(self.rows_C):
            return
        assert self.places_C is not None
        row_bytes = path.stat().st_size // self._capacity
        rows_CS = self._changed(part, row_bytes)
        starts = np.flatnonzero(np.diff(self.places_C, prepend=-2) != 1)
        # Not by a mapping: on a full disk it would end the process.
        with named_errors(path), path.open("r+b", buffering=0) as file:
            for start, stop in zip(starts, [*starts[1:], len(rows_CS)], strict=True):
                _pwrite(file.fileno(), rows_CS[start:stop], int(self.places_C[start]) * row_bytes)
            os.fsync(file.fileno())

    def _write_anew(self, folder: Path, part: str, positions_R: Positions) -> None:
        """Writes a file of its own, with the rows in order and the spare ones behind them."""
        source, path = self.base / self.base_table.files[part], folder / self.table.files[part]
        row_bytes = source.stat().st_size // self._capacity
        with named_errors(path), path.open("xb") as file:
            for rows in rows_in_order(source, positions_R, self._capacity):
                file.write(rows.tobytes())
            file.truncate(self._capacity * row_bytes)
            if len(self.rows_C):
                for row, content in zip(self.rows_C, self._changed(part, row_bytes), strict=True):
                    file.seek(int(row) * row_bytes)
                    file.write(content.tobytes())
            file.flush()
            os.fsync(file.fileno())


def unused_places(used_P: Flags, num_rows: int) -> Positions | None:
    """Chooses places [C] for so many rows; None where there are not as many."""
    places_C = np.flatnonzero(~used_P)[:num_rows]
    if len(places_C) < num_rows:
        return None
    return places_C.astype(positions_dtype(len(used_P)))


def _pwrite(descriptor: int, content: Bytes, offset: int) -> None:
    view = np.ascontiguousarray(content).data.cast("B")
    while view:
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done


def _write_synced(path: Path, contents: list[bytes]) -> None:
    with named_errors(path), path.open("xb") as file:
        for content in contents:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())

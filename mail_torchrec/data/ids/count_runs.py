"""Runs of counts on disk, sorted by a hash of the id, so that equal ids of all runs lie together.

A hash part is one of :data:`NUM_PARTS` equal ranges of the hash. Whoever merges counts reads some
hash parts of all runs at a time; ranks share the counting by taking some parts each.

Shapes: ``N`` ids of a run, ``P`` hash parts and one more.
"""

import errno
import os
import tempfile
from itertools import pairwise
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.parquet.arrow import Ints, one_chunk

NUM_PARTS = 4096
"""Number of hash parts."""
_SHIFT = np.uint64(64 - 12)
_SALT = "counts"


class CountRun(NamedTuple):
    """Counts of ids in the order of their hash parts."""

    table: pa.Table
    """Columns ``value`` and ``count``."""
    offsets_P: Ints
    """Where each hash part begins, and where the last one ends."""

    def part(self, first: int, stop: int) -> pa.Table:
        """Returns the counts of the hash parts ``first .. stop``."""
        start, end = int(self.offsets_P[first]), int(self.offsets_P[stop])
        return self.table.slice(start, end - start)


def sorted_run(table: pa.Table) -> CountRun:
    """Sorts counts by hash part.

    Args:
        table: columns ``value`` and ``count``.
    """
    parts_N = _hash_parts(one_chunk(table["value"]))
    order_N = np.argsort(parts_N, kind="stable")  # a radix sort of 16-bit integers
    sizes = np.bincount(parts_N, minlength=NUM_PARTS)
    offsets_P = np.concatenate([[0], np.cumsum(sizes)])
    return CountRun(table.take(pa.array(order_N)).combine_chunks(), offsets_P)


def part_bounds(number: int) -> list[tuple[int, int]]:
    """Cuts the hash parts into so many ranges of like size, as first part and stop."""
    return list(pairwise(NUM_PARTS * i // number for i in range(number + 1)))


class SpilledRuns:
    """Runs of counts in a temporary file without a name, which ends with its process.

    It lies in the folder for temporary files (``TMPDIR``).
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()
        self._mapped: pa.MemoryMappedFile | None = None
        self._starts: list[tuple[int, Ints]] = []
        self.num_bytes = 0
        """Bytes of all runs."""

    def append(self, run: CountRun) -> None:
        """Writes a run.

        Raises:
            OSError: the disk is full or fails.
        """
        start = self._file.tell()
        try:
            with pa.ipc.new_stream(pa.PythonFile(self._file, "w"), run.table.schema) as stream:
                stream.write_table(run.table)
            self._file.flush()
        except OSError as error:
            raise OSError(
                error.errno or errno.EIO,
                "counts of the ids of the training data do not fit into memory and could not be "
                f"written ({os.strerror(error.errno or errno.EIO)}); set TMPDIR to a folder of a "
                "disk with room for them",
                tempfile.gettempdir(),
            ) from error
        self._starts.append((start, run.offsets_P))
        self.num_bytes = self._file.tell()
        self._mapped = None

    @property
    def runs(self) -> list[CountRun]:
        """All runs; their bytes are read from disk where they are used."""
        if self._mapped is None and self._starts:
            self._mapped = pa.memory_map(f"/proc/self/fd/{self._file.fileno()}")
        return [CountRun(self._read(start), offsets) for start, offsets in self._starts]

    def _read(self, start: int) -> pa.Table:
        assert self._mapped is not None
        self._mapped.seek(start)
        return pa.ipc.open_stream(self._mapped).read_all()


def _hash_parts(values: pa.Array) -> npt.NDArray[np.uint16]:
    """Returns the hash part of each value, [N]; equal values have the same one."""
    if pa.types.is_floating(values.type):
        values = values.cast(pa.float64()).view(pa.int64())
    return (hash64(values, _SALT) >> _SHIFT).astype(np.uint16)

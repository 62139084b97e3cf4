"""Fingerprints of Parquet files: what their footers say, and checksums of their column chunks."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mail_torchrec.data.parquet.access import reading
from mail_torchrec.data.parquet.parquet_file import ParquetFile, column_of_leaf

_WINDOW = 64 << 10
_NUM_WINDOWS = 16
_NUM_THREADS = 16  # waiting for storage, most of the time


class FileFingerprint(NamedTuple):
    """Fingerprint of columns of one file."""

    name: str
    """Name of the file, for messages; no part of what is compared."""
    sizes: str
    """Checksum of the numbers of rows of its row groups."""
    content: str
    """Checksum of everything else."""


def fingerprints(files: Iterable[ParquetFile], columns: list[str]) -> list[FileFingerprint]:
    """Computes a fingerprint of columns of each file that has rows.

    It covers, for each row group in order, its number of rows and of each column the number of
    values and nulls, the lowest and the highest value, the sizes of the pages with and without
    compression, and a checksum of the stored bytes: of all of them where a column of a row group
    takes at most 1 MiB, else of 16 parts of 64 KiB, the first and the last ones included. So labels
    are covered whole in row groups of up to 8 million rows, and a value that changes between two
    parts of a large column is missed if the sizes, the ends and the count of nulls stay.

    Copies of files have one fingerprint, wherever they lie.

    Args:
        files: in the order in which they are read; files without rows are left out.
        columns: names in the files.

    Raises:
        ValueError: a file cannot be read.
    """
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        found = threads.map(lambda file: _fingerprint(file, columns), files)
        return [one for one in found if one is not None]


def differing_files(
    found: Sequence[FileFingerprint], wanted: Sequence[FileFingerprint]
) -> list[str]:
    """Describes the files whose fingerprints differ, in their order; empty where none does.

    Args:
        found: of the files that are there.
        wanted: of those that were there before.
    """
    if len(found) != len(wanted):
        known = {one[1:] for one in wanted}
        new = [f"'{one.name}' is new or changed" for one in found if one[1:] not in known]
        return [f"there are {len(found)} files with rows, {len(wanted)} then", *new]
    return [
        f"'{now.name}' has "
        + ("the same sizes and other values" if now.sizes == then.sizes else "other row groups")
        + (f" (it was '{then.name}')" if now.name != then.name else "")
        for now, then in zip(found, wanted, strict=True)
        if now[1:] != then[1:]
    ]


def _fingerprint(file: ParquetFile, columns: list[str]) -> FileFingerprint | None:
    sizes, content = hashlib.sha256(), hashlib.sha256()
    values = {name: str(value) for name, value in file.partition_values.items()}
    has_rows = False
    for rows, chunks in _row_groups(file, set(columns)):
        has_rows = True
        sizes.update(f"{rows}\n".encode())
        content.update(json.dumps([rows, chunks]).encode())
    if not has_rows:
        return None
    content.update(json.dumps({name: values.get(name) for name in columns}).encode())
    name = file.path.rstrip("/").rpartition("/")[2]
    return FileFingerprint(name, sizes.hexdigest()[:16], content.hexdigest()[:32])


def _row_groups(file: ParquetFile, columns: set[str]) -> Iterator[tuple[int, list[object]]]:
    """Yields rows and column chunks of each row group that has rows."""
    with reading(file.path):
        metadata = file.fragment.metadata
    names = file.fragment.physical_schema.names
    leaves = [
        index
        for index in range(metadata.num_columns)
        if column_of_leaf(metadata.schema.column(index).path, names) in columns
    ]
    with reading(file.path), file.fragment.open() as stored:
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            if group.num_rows:
                chunks = [group.column(leaf) for leaf in leaves]
                yield group.num_rows, [[*_describe(one), _checksum(one, stored)] for one in chunks]


def _describe(chunk: pq.ColumnChunkMetaData) -> list[object]:
    sizes = [chunk.num_values, chunk.total_compressed_size, chunk.total_uncompressed_size]
    statistics = chunk.statistics
    if statistics is None:
        return [chunk.path_in_schema, *sizes]
    ends = [repr(statistics.min_raw), repr(statistics.max_raw)] if statistics.has_min_max else []
    return [chunk.path_in_schema, *sizes, statistics.null_count, *ends]


def _checksum(chunk: pq.ColumnChunkMetaData, stored: pa.NativeFile) -> int:
    """Computes a CRC-32 of the bytes of a column chunk, or of a sample of them.

    Args:
        chunk: place and size of the column in the file.
        stored: the file.
    """
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    start = min(start, chunk.data_page_offset)
    size = chunk.total_compressed_size
    if size <= _NUM_WINDOWS * _WINDOW:
        return zlib.crc32(stored.read_at(size, start))
    checksum = 0
    for window in range(_NUM_WINDOWS):
        place = start + window * (size - _WINDOW) // (_NUM_WINDOWS - 1)
        checksum = zlib.crc32(stored.read_at(_WINDOW, place), checksum)
    return checksum

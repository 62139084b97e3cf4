"""Fingerprint of Parquet data, from the footers of its files; no row is read."""

import hashlib
import json
from collections.abc import Iterable, Iterator

import pyarrow.parquet as pq

from mail_torchrec.data.parquet.access import reading
from mail_torchrec.data.parquet.parquet_file import ParquetFile, column_of_leaf


def fingerprint(files: Iterable[ParquetFile], columns: list[str]) -> str:
    """Computes a fingerprint of columns of Parquet files.

    It covers, for each row group in order, its number of rows and of each column the number of
    values and nulls, the lowest and the highest value, and the sizes of the pages with and without
    compression. Copies of files have one fingerprint, wherever they lie. Files that were written
    anew with other values have another one, except where all of these numbers agree, as they may
    for a permutation of few values (labels).

    Args:
        files: in the order in which they are read; files without rows count for nothing.
        columns: names in the files.

    Returns:
        Two SHA-256 sums with a dash between them: of the row counts, and of everything.

    Raises:
        ValueError: a file cannot be read.
    """
    row_counts, everything = hashlib.sha256(), hashlib.sha256()
    for file in files:
        values = {name: str(value) for name, value in file.partition_values.items()}
        for num_rows, chunks in _row_groups(file, set(columns)):
            row_counts.update(f"{num_rows}\n".encode())
            text = json.dumps([num_rows, chunks, {name: values.get(name) for name in columns}])
            everything.update(f"{text}\n".encode())
    return f"{row_counts.hexdigest()}-{everything.hexdigest()}"


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
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if group.num_rows:
            yield group.num_rows, [_describe(group.column(leaf)) for leaf in leaves]


def _describe(chunk: pq.ColumnChunkMetaData) -> list[object]:
    sizes = [chunk.num_values, chunk.total_compressed_size, chunk.total_uncompressed_size]
    statistics = chunk.statistics
    if statistics is None:
        return [chunk.path_in_schema, *sizes]
    ends = [repr(statistics.min_raw), repr(statistics.max_raw)] if statistics.has_min_max else []
    return [chunk.path_in_schema, *sizes, statistics.null_count, *ends]

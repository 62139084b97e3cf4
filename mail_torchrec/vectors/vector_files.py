"""Parquet files of vectors, and the Parquet files of ids and users that they are made of.

A vector file has the columns ``id``, ``vector`` (a fixed-size list of float32) and ``version`` (of
the model). Files are written and read batch by batch. ``N`` vectors of a batch, ``D`` dimensions.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from mail_torchrec.data.parquet.arrow import Floats, one_chunk
from mail_torchrec.data.parquet.files import parquet_files
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.inference.values import ValueType, file_values


class VectorWriter:
    """Writes one vector file; it exists from the first vectors on.

    Args:
        path: path of the file.
        version: version of the model.
    """

    def __init__(self, path: Path, version: str) -> None:
        self._path, self._version = path, version
        self._writer: pq.ParquetWriter | None = None
        self.num_rows = 0

    def write(self, ids: pa.Array, vectors_ND: Floats) -> None:
        """Appends vectors.

        Args:
            ids: raw ids [N].
            vectors_ND: their vectors.

        Raises:
            ValueError: ids of another type than before.
        """
        vectors = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors_ND.reshape(-1)), vectors_ND.shape[1]
        )
        versions = pa.array([self._version] * len(ids), pa.string())
        table = pa.table({"id": ids, "vector": vectors, "version": versions})
        if self._writer is None:
            # Floats of trained vectors do not repeat: a dictionary of them is wasted work.
            self._writer = pq.ParquetWriter(
                self._path, table.schema, use_dictionary=["version"], compression="none"
            )
        if table.schema != self._writer.schema:
            raise ValueError(
                f"ids should be of one type in all files, received {ids.type} after "
                f"{self._writer.schema.field('id').type}"
            )
        self._writer.write_table(table)
        self.num_rows += len(ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()


def num_vectors(path: Path) -> int:
    """Counts the vectors of a file."""
    return int(pq.read_metadata(path).num_rows)


def read_vectors(path: Path, batch_size: int) -> Iterator[Floats]:
    """Reads the vectors of a file in order, in batches [N, D]."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size, columns=["vector"]):
        lists = batch["vector"]
        yield lists.flatten().to_numpy().reshape(len(lists), lists.type.list_size)


def read_ids(path: str, column: str, kind: ValueType) -> pa.Array:
    """Reads the distinct ids in a column of the Parquet files below a path.

    They come in the order of their first rows; nulls are skipped.

    Args:
        path: Parquet file, folder or URI.
        column: name of the column.
        kind: type of its values in training.

    Returns:
        int64 or large_string ids, [N].

    Raises:
        ValueError: no files, no such column, or values of another type.
    """
    parts = []
    for file in parquet_files(path, "give --items a Parquet file or folder of items"):
        if not file.num_rows:
            continue
        file.check_columns([column])
        parts.append(ids_of(file.read([column]), column, kind, file.path).unique())
    if not parts:
        raise ValueError(f"'{path}' should hold items, received no rows")
    return one_chunk(pa.chunked_array(parts)).unique().drop_null()


def ids_of(table: pa.Table, column: str, kind: ValueType, file: str) -> pa.Array:
    """Converts a table's ids to int64 or large_string, [N].

    Args:
        table: N rows of a file.
        column: name of the column.
        kind: type of its values in training.
        file: for messages.

    Raises:
        ValueError: values of another type; the message names file and column.
    """
    try:
        values = file_values(table[column], kind, is_list=False)
    except ValueError as error:
        raise ValueError(f"{file}: column '{column}' {error}, as in training") from error
    return plain_ids(pa.chunked_array([values]), file=file, name=column)


def read_tables(path: str, columns: list[str], batch_size: int) -> Iterator[tuple[str, pa.Table]]:
    """Reads the rows of the Parquet files below a path, in batches.

    Args:
        path: Parquet file or folder.
        columns: columns to read; those that a file does not have are skipped.
        batch_size: most rows of a batch.

    Yields:
        Path of the file, and rows of it.

    Raises:
        ValueError: no files, or a file that cannot be read.
    """
    for file in parquet_files(path, "give --users a Parquet file or folder of users"):
        found = [name for name in columns if name in file.schema.names]
        file.check_columns(found)
        for batch in file.batches(found, batch_size):
            yield file.path, batch

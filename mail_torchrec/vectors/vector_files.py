"""Vectors as Parquet: ``id``, ``vector`` (a fixed-size list of float32), ``version`` of the model; written and read piece by piece."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from mail_torchrec.data.parquet.arrow import Floats, one_chunk, plain_ids
from mail_torchrec.data.parquet.source import parquet_files, unreadable


class VectorWriter:
    """Writes one file; it is there from the first vectors on.

    Args:
        path: of the file.
        version: of the model.
    """

    def __init__(self, path: Path, version: str) -> None:
        self._path, self._version = path, version
        self._writer: pq.ParquetWriter | None = None
        self.num_rows = 0

    def write(self, ids: pa.Array, vectors_ND: Floats) -> None:
        """Appends vectors.

        Raises:
            ValueError: ids of another type than before.
        """
        vectors = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors_ND.reshape(-1)), vectors_ND.shape[1]
        )
        table = pa.table(
            {
                "id": ids,
                "vector": vectors,
                "version": pa.array([self._version] * len(ids), pa.string()),
            }
        )
        if self._writer is None:
            # Floats of trained vectors do not repeat: a dictionary of them is lost work.
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
    """How many a file holds."""
    return int(pq.read_metadata(path).num_rows)


def read_vectors(path: Path, at_a_time: int) -> Iterator[Floats]:
    """The vectors of a file in order, [N, D] a piece."""
    for batch in pq.ParquetFile(path).iter_batches(at_a_time, columns=["vector"]):
        lists = batch["vector"]
        yield lists.flatten().to_numpy().reshape(len(lists), lists.type.list_size)


def read_ids(path: str, column: str) -> pa.Array:
    """The different ids in a column of the Parquet files below a path, in the order of their first rows; nulls are none.

    Raises:
        ValueError: nothing there, no such column, or no ids.
    """
    parts = []
    for fragment in parquet_files(path, "name a Parquet file or folder of items"):
        table = _with_columns(fragment, [column])
        parts.append(plain_ids(table[column], file=str(fragment.path), name=column).unique())
    if len({part.type for part in parts}) > 1:
        raise ValueError(
            f"'{path}': column '{column}' should be of one type in all files, found "
            f"{sorted({str(p.type) for p in parts})}"
        )
    return one_chunk(pa.chunked_array(parts)).unique().drop_null()


def read_tables(path: str, wanted: list[str], at_a_time: int) -> Iterator[tuple[str, pa.Table]]:
    """Rows of the Parquet files below a path: where they lie, and those of the wanted columns that there are.

    Raises:
        ValueError: nothing there, or a file cannot be read.
    """
    for fragment in parquet_files(path, "name a Parquet file or folder of users"):
        columns = [name for name in wanted if name in fragment.physical_schema.names]
        try:
            for batch in fragment.to_batches(columns=columns, batch_size=at_a_time):
                if len(batch):
                    yield str(fragment.path), pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            raise unreadable(str(fragment.path), error) from error


def _with_columns(fragment: pads.ParquetFileFragment, columns: list[str]) -> pa.Table:
    if missing := [name for name in columns if name not in fragment.physical_schema.names]:
        raise ValueError(
            f"{fragment.path}: column '{missing[0]}' is missing; the file has "
            f"{', '.join(fragment.physical_schema.names)}"
        )
    try:
        return fragment.to_table(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(str(fragment.path), error) from error

"""Vectors by id, read from a file, that rows of an embedding table begin with.

Shapes: ``N`` rows of the table, ``D`` dimension of the table.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from mail_torchrec.data.content.vector_values import Vectors, vector_values
from mail_torchrec.data.ids.policy import MISSING_ROW, IdEncoder
from mail_torchrec.data.parquet.arrow import Bools, Floats, Ints
from mail_torchrec.data.parquet.files import parquet_files
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.parquet.parquet_file import ParquetFile
from mail_torchrec.data.schema.columns import VectorFileSettings
from mail_torchrec.data.schema.schema import Schema

_BATCH_ROWS = 16_384


class TableVectors:
    """Reads the vectors of a table's ids, some rows of the file at a time.

    Every rank reads the whole file and keeps what its shards need. Ids that the table does not
    know are passed over, and so are ids whose vector is null.

    Args:
        table: its name, for messages.
        path: of the Parquet file or folder.
        settings: columns of the file.
        encoder: ids -> rows of the table.
        dim: D.

    Raises:
        ValueError: no such file, or a column is missing.
    """

    def __init__(
        self, table: str, path: str, settings: VectorFileSettings, encoder: IdEncoder, dim: int
    ) -> None:
        self._where = f"schema.tables.{table}.init_from"
        self._settings, self._encoder, self._dim, self._path = settings, encoder, dim, path
        self._files = parquet_files(path, f"set {self._where}.path")
        for file in self._files:
            remedy = f"name another in {self._where}.id and {self._where}.vector"
            file.check_columns([settings.id, settings.vector], remedy)
        self._is_found_R = np.zeros(encoder.num_rows, np.bool_)
        self._num_unknown, self._squares = 0, 0.0

    def __iter__(self) -> Iterator[tuple[Ints, Floats]]:
        """Yields rows of the table [N] and their vectors [N, D].

        Raises:
            ValueError: an id twice, vectors of another length than D, elements that are no finite
                numbers, or no id that the table knows; with file, column and row.
        """
        self._is_found_R[:], self._num_unknown, self._squares = False, 0, 0.0
        for file in self._files:
            start = 0
            for part in file.batches([self._settings.id, self._settings.vector], _BATCH_ROWS):
                yield self._known(part, file, start)
                start += len(part)
        if not self._is_found_R.any():
            raise ValueError(
                f"{self._where}: none of the {self._num_unknown} ids with a vector in "
                f"'{self._path}' is one of the table; are they ids of these data?"
            )

    @property
    def summary(self) -> str:
        """Numbers of ids with and without a vector, once all are read, in words."""
        num_found = int(np.count_nonzero(self._is_found_R))
        size = (self._squares / max(1, num_found * self._dim)) ** 0.5
        return (
            f"{num_found:,} of {len(self._encoder.rows_V):,} ids begin with their vector "
            f"of '{self._path}', the others at random; {self._num_unknown:,} ids of the file are "
            f"none of the table's; root mean square of their numbers: {size:.3g}"
        )

    def _known(self, part: pa.Table, file: ParquetFile, start: int) -> tuple[Ints, Floats]:
        """Encodes rows of the file, of which the first is number ``start``."""
        vectors_ND = self._vectors(part, file, start)
        rows_N = self._rows(part, file, start)
        is_given_N = ~np.isnan(vectors_ND[:, 0])
        is_unknown_N = self._encoder.is_unknown(rows_N)
        is_known_N = is_given_N & ~is_unknown_N
        self._num_unknown += int(np.count_nonzero(is_given_N & is_unknown_N))
        is_again_N = is_known_N & (self._is_found_R[rows_N] | _is_repeated(rows_N))
        if is_again_N.any():
            place = int(np.argmax(is_again_N))
            raise ValueError(
                f"{file.path}: column '{self._settings.id}' should hold each id once, received "
                f"{part[self._settings.id][place].as_py()!r} again in row {start + place}; keep "
                "one vector of each id"
            )
        self._is_found_R[rows_N[is_known_N]] = True
        weights_ND = vectors_ND[is_known_N] * self._settings.scale
        self._squares += float(np.square(weights_ND).sum())
        return rows_N[is_known_N], weights_ND.astype(np.float32)

    def _vectors(self, part: pa.Table, file: ParquetFile, start: int) -> Vectors:
        name = self._settings.vector
        try:
            return vector_values(part[name], self._dim, file=file.path, name=name, first_row=start)
        except ValueError as error:
            raise ValueError(
                f"{error} (the table has {self._dim} dimensions: schema.tables and schema.dim say "
                "so, and vectors are not projected)"
            ) from error

    def _rows(self, part: pa.Table, file: ParquetFile, start: int) -> Ints:
        name = self._settings.id
        ids = plain_ids(part[name], file=file.path, name=name)
        try:
            rows_N = self._encoder.encode(ids)
        except ValueError as error:
            raise ValueError(f"{file.path}: column '{name}': {error}") from error
        if ids.null_count:
            place = int(np.argmax(rows_N == MISSING_ROW))
            raise ValueError(
                f"{file.path}: column '{name}' should not be null, received null in row "
                f"{start + place}; drop the row"
            )
        return rows_N


def open_table_vectors(
    schema: Schema, encoders: Mapping[str, IdEncoder], data_path: Callable[[str], str]
) -> dict[str, TableVectors]:
    """Opens the files of vectors that tables begin with, by table.

    Args:
        schema: columns and tables.
        encoders: of the ids, by table; of the tables that are asked for.
        data_path: gives the path of a file below ``data.root``.

    Raises:
        ValueError: no such file, or a column is missing.
    """
    tables = {name: schema.table(name) for name in encoders}
    return {
        name: TableVectors(
            name, data_path(file.path), file, encoders[name], table.dim or schema.dim
        )
        for name, table in tables.items()
        if (file := table.init_from) is not None
    }


def _is_repeated(rows_N: Ints) -> Bools:
    """Marks rows that stand before in the array."""
    is_repeated_N = np.ones(len(rows_N), np.bool_)
    is_repeated_N[np.unique(rows_N, return_index=True)[1]] = False
    return is_repeated_N

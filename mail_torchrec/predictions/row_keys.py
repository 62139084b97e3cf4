"""Keys that predictions are joined by: file, row number and columns kept as they are stored."""

from collections.abc import Collection, Iterator, Mapping
from itertools import accumulate

import pyarrow as pa

from mail_torchrec.data.source import PIECE_ROWS, RowGroup, Source

FILE, ROW = "filename", "file_row_number"
"""Columns of every prediction, named as DuckDB's ``read_parquet`` names them."""


class RowKeys:
    """Columns that join predictions to the rows of their files.

    Args:
        source: opened files.
        kept: columns of the files to keep, by their names among the predictions.
        others: names of the other columns of the predictions.

    Raises:
        ValueError: a kept column is missing in a file, has types that no type holds together, or
            has the name of another column.
    """

    def __init__(self, source: Source, kept: Mapping[str, str], others: Collection[str]) -> None:
        assert not source.is_filtered, "rows are numbered as the files have them"
        if taken := sorted(kept.keys() & {FILE, ROW, *others}):
            raise ValueError(
                f"predictions have a column '{taken[0]}' of their own, and one of this name should "
                f"be kept; keep it by another name: schema.columns.NAME="
                f"{{group: passthrough, column: {kept[taken[0]]}}}"
            )
        self._source, self._kept = source, kept
        self._columns = list(dict.fromkeys(kept.values()))
        types = {column: self._type(column) for column in self._columns}
        fields = [(FILE, pa.string()), (ROW, pa.int64())]
        self.schema = pa.schema([*fields, *((name, types[kept[name]]) for name in kept)])
        """Columns of :meth:`take`'s tables, in order."""

    def stream(self, first: int) -> "RowKeyStream":
        """Begins to read the keys of consecutive rows.

        Args:
            first: number of the first row in the data.
        """
        return RowKeyStream(self._pieces(first))

    def _type(self, column: str) -> pa.DataType:
        """Finds the one type of a kept column: as stored, or one that holds all files' values."""
        files = [file for file in self._source.files if file.num_rows]
        for file in files:
            file.check_columns([column], "add it, or do not keep it")
        first, *others = dict.fromkeys(file.schema.field(column).type for file in files)
        for other in others:
            fields = (pa.schema([("", _without_dictionary(kind))]) for kind in (first, other))
            try:
                first = pa.unify_schemas(list(fields), promote_options="permissive").field(0).type
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise ValueError(
                    f"'{self._source.path}': column '{column}' should have one type to be kept, "
                    f"received {first} in some files and {other} in others; cast one of them"
                ) from error
        return first

    def _pieces(self, first: int) -> Iterator[pa.Table]:
        """Reads the keys from a row on, piece by piece."""
        groups = self._source.row_groups
        in_files: dict[int, int] = {}
        for group, stop in zip(groups, accumulate(group.num_rows for group in groups), strict=True):
            in_file = in_files.get(group.file, 0)  # rows of the file before the row group
            in_files[group.file] = in_file + group.num_rows
            if stop <= first:
                continue
            skipped = max(first - (stop - group.num_rows), 0)
            for start, piece in self._stored(group):
                if start + len(piece) > skipped:
                    yield self._piece(group, in_file + start, piece).slice(max(skipped - start, 0))

    def _stored(self, group: RowGroup) -> Iterator[tuple[int, pa.Table]]:
        """Reads the kept columns of a row group, with the row at which each piece begins."""
        file = self._source.files[group.file]
        if not self._columns:  # tables of rows alone
            for start in range(0, group.num_rows, PIECE_ROWS):
                num_rows = min(PIECE_ROWS, group.num_rows - start)
                yield start, pa.table({FILE: pa.nulls(num_rows)})
            return
        start = 0
        for piece in file.batches(self._columns, PIECE_ROWS, group.index):
            yield start, piece
            start += len(piece)

    def _piece(self, group: RowGroup, first: int, stored: pa.Table) -> pa.Table:
        """Makes the keys of a piece that begins at a row of its file."""
        arrays = [
            pa.repeat(self._source.files[group.file].path, len(stored)),
            pa.array(range(first, first + len(stored)), pa.int64()),
            *(
                _cast(stored[column], self.schema.field(name).type)
                for name, column in self._kept.items()
            ),
        ]
        return pa.table(arrays, schema=self.schema)


class RowKeyStream:
    """Keys of consecutive rows, taken batch by batch; holds one piece of a row group."""

    def __init__(self, pieces: Iterator[pa.Table]) -> None:
        self._pieces, self._rest = pieces, next(pieces)

    def take(self, num_rows: int) -> pa.Table:
        """Returns the keys of the next rows.

        Raises:
            ValueError: a file cannot be read any more.
        """
        parts = []
        while num_rows:
            if not len(self._rest):
                self._rest = next(self._pieces)
            part = self._rest.slice(0, num_rows)
            self._rest = self._rest.slice(len(part))
            parts.append(part)
            num_rows -= len(part)
        return pa.concat_tables(parts or [self._rest.slice(0, 0)])


def _without_dictionary(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Casts a column to its type over all files."""
    if column.type == kind:
        return column
    return column.cast(_without_dictionary(column.type)).cast(kind)

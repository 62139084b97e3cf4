"""Bounded sample of the rows of Parquet files, before a schema says what their columns are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from mail_torchrec.data.parquet.arrow import one_chunk
from mail_torchrec.data.parquet.logical_types import (
    LogicalType,
    element_type,
    logical_type,
    plain_lists,
    plain_values,
)
from mail_torchrec.data.parquet.parquet_file import ParquetFile

_PIECE_ROWS = 8_192


@dataclass(frozen=True)
class Sample:
    """Rows of some row groups, their columns in plain Arrow types.

    Args:
        table: sampled rows; ids are int64 or large_string, numbers float64, lists large_list.
        num_rows: rows of all files.
        stored: types of the columns as the files store them.
        faults: why the values of a column cannot be read; they are null in the table.
    """

    table: pa.Table
    num_rows: int
    stored: dict[str, pa.DataType]
    faults: dict[str, str]

    @property
    def is_whole(self) -> bool:
        """True where every row of the files was read."""
        return len(self.table) == self.num_rows


@dataclass(frozen=True)
class Piece:
    """First rows of one row group, or all of them.

    Args:
        file: index of the file.
        row_group: number of the row group in the file.
        num_rows: rows to read.
    """

    file: int
    row_group: int
    num_rows: int


def spread_pieces(
    row_groups: Sequence[Piece], max_rows: int, piece_rows: int = _PIECE_ROWS
) -> list[Piece]:
    """Chooses row groups evenly over all files, and the first rows of each.

    Args:
        row_groups: all of them, with all their rows.
        max_rows: rows to read; all row groups whole where they hold no more.
        piece_rows: rows that are read of a row group at least, where it has them.
    """
    total = sum(group.num_rows for group in row_groups)
    if total <= max_rows:
        return list(row_groups)
    needed = -(-max_rows * len(row_groups) // total)  # where they are small
    count = min(len(row_groups), max(1, needed, max_rows // piece_rows))
    chosen = [row_groups[index * len(row_groups) // count] for index in range(count)]
    rows = -(-max_rows // count)
    return [Piece(piece.file, piece.row_group, min(rows, piece.num_rows)) for piece in chosen]


def read_sample(files: Sequence[ParquetFile], max_rows: int) -> Sample:
    """Reads a sample of the rows of files; a column that a file lacks is null there.

    Args:
        files: of one data set.
        max_rows: rows to read.

    Raises:
        ValueError: a file cannot be read, or a column is of different types in different files.
    """
    groups = [
        Piece(index, group.id, group.num_rows)
        for index, file in enumerate(files)
        for group in file.row_groups
        if group.num_rows
    ]
    if not groups:
        raise ValueError(f"the {len(files)} Parquet files ({files[0].path} ...) hold no rows")
    stored: dict[str, pa.DataType] = {}
    for piece in groups:
        _add_types(stored, files[piece.file])
    tables: list[pa.Table] = []
    faults: dict[str, str] = {}
    for piece in spread_pieces(groups, max_rows):
        tables.extend(_plain(table, stored, faults) for table in _read(files[piece.file], piece))
    num_rows = sum(group.num_rows for group in groups)
    return Sample(pa.concat_tables(tables, promote_options="default"), num_rows, stored, faults)


def _add_types(stored: dict[str, pa.DataType], file: ParquetFile) -> None:
    """Adds the types of a file's columns; null types have no say."""
    for field in file.schema:
        known = stored.get(field.name, pa.null())
        types = [_plain_type(kind) for kind in (known, field.type)]
        if pa.null() not in types and types[0] != types[1]:
            raise ValueError(
                f"{file.path}: column '{field.name}' is of type {field.type}, and of type {known} "
                "in files before it; cast one of them"
            )
        stored[field.name] = known if pa.types.is_null(field.type) else field.type


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type that a column is converted to; null for one that nothing reads."""
    if pa.types.is_null(kind):
        return kind
    if (element := element_type(kind)) is not None:
        is_readable = element_type(element) is None or pa.types.is_null(element)
        return pa.large_list(_plain_type(element)) if is_readable else pa.null()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us")
    if pa.types.is_decimal(kind):
        return pa.float64() if kind.scale > 0 else pa.int64()
    logical = logical_type(kind)
    return pa.null() if logical is None else plain_values(pa.nulls(0, kind), logical).type


def _is_readable(kind: pa.DataType) -> bool:
    plain = _plain_type(kind)
    return not pa.types.is_null(plain) and plain != pa.large_list(pa.null())


def _read(file: ParquetFile, piece: Piece) -> Iterator[pa.Table]:
    left = piece.num_rows
    names = list(dict.fromkeys(file.schema.names))
    file.check_columns(names)
    for table in file.batches(names, min(left, _PIECE_ROWS), piece.row_group):
        yield table.slice(0, left)
        left -= len(table)
        if left <= 0:
            return


def _plain(table: pa.Table, stored: dict[str, pa.DataType], faults: dict[str, str]) -> pa.Table:
    """Converts columns to plain types, those of all files, nulls where the table lacks one."""
    columns = {}
    for name, kind in stored.items():
        columns[name] = pa.nulls(len(table), _plain_type(kind))
        if name not in table.column_names or pa.types.is_null(table[name].type):
            continue
        try:
            columns[name] = _plain_column(table[name], kind)
        except (ValueError, pa.ArrowException) as error:
            faults.setdefault(name, str(error).partition("\n")[0])
    return pa.table(columns)


def _plain_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Converts a column to its plain type."""
    if not _is_readable(kind):
        raise ValueError(f"are of type {kind}, which no kind of column reads")
    if (element := element_type(kind)) is not None and logical_type(element) is not None:
        return _with_nulls(plain_lists(column, _logical(element)), column)
    if logical_type(kind) is None or pa.types.is_decimal(kind):
        return column.cast(_plain_type(kind), safe=False)
    return plain_values(column, _logical(kind))


def _with_nulls(lists: pa.LargeListArray, column: pa.ChunkedArray) -> pa.Array:
    """Makes null again what was null; vectors may be, and need not be empty lists for it."""
    if not column.null_count or isinstance(column.type, pa.BaseExtensionType):
        return lists
    is_null = one_chunk(column).is_null()
    return pa.LargeListArray.from_arrays(lists.offsets, lists.values, mask=is_null)


def _logical(kind: pa.DataType) -> LogicalType:
    found = logical_type(kind)
    assert found is not None
    return found

"""Columns of evaluated rows that their batches do not hold, read by the numbers of the rows.

Shape: ``R`` rows.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa

from mail_torchrec.data.parquet.arrow import one_chunk
from mail_torchrec.data.parquet.logical_types import element_type, logical_type, plain_values
from mail_torchrec.data.parquet.parquet_file import ParquetFile
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import RowGroup, Source


def check_group_columns(source: Source, schema: Schema, names: Iterable[str]) -> None:
    """Checks that rows can be grouped by these columns of ``metrics.by``.

    Raises:
        ValueError: a file has no such column, or one that holds several values a row; or a name
            means a cross.
    """
    for name in names:
        if name in schema.columns and (cross := schema.columns[name].cross) is not None:
            raise ValueError(
                f"metrics.by: column '{name}' is a cross, whose values are hashes; name a column "
                f"that it is made of, such as '{cross[0]}'"
            )
        columns = schema.raw_columns(name) if name in schema.columns else [name]
        for file in source.files:
            if not file.num_rows:
                continue
            file.check_columns(columns, "correct metrics.by, or add the column")
            for column in columns:
                _check_one_value(file, column)


def _check_one_value(file: ParquetFile, column: str) -> None:
    kind = file.schema.field(column).type
    if element_type(kind) is not None or pa.types.is_struct(kind) or pa.types.is_map(kind):
        raise ValueError(
            f"{file.path}: column '{column}' (metrics.by) should hold one value a row, "
            f"found {kind}; take it out of metrics.by"
        )


def read_texts(source: Source, schema: Schema, name: str, rows: Sequence[range]) -> pa.Array:
    """Reads a column of numbered rows as text, null where there is no value, [R].

    Args:
        source: of the rows.
        schema: of their columns.
        name: of ``metrics.by``: of the schema, those that are derived included, or of the files.
        rows: their numbers, from 0 in the order of the files.

    Raises:
        ValueError: a file cannot be read any more, or has values that have no text.
    """
    column = schema.file_column(name) if name in schema.columns else name

    def read(group: RowGroup) -> pa.Array:
        if name in schema.derived:
            stored = source.read(group, [column])[column]
        else:
            stored = source.files[group.file].read([column], group.index)[column]
        try:
            return _as_text(stored)
        except pa.ArrowException as error:
            raise ValueError(
                f"{source.file(group)}: column '{column}' (metrics.by) should hold values that "
                f"have a text, found {stored.type}: {error}; take it out of metrics.by"
            ) from error

    return read_rows(source, rows, read)


def read_rows(
    source: Source, rows: Sequence[range], read: Callable[[RowGroup], pa.Array]
) -> pa.Array:
    """Reads values of numbered rows, [R].

    Args:
        source: of the rows.
        rows: their numbers, from 0 in the order of the files.
        read: reads the values of all rows of a row group.
    """
    first, last = min(part.start for part in rows), max(part.stop for part in rows)
    values, start = [], 0
    for group in source.row_groups:
        begin, end = max(first - start, 0), min(last - start, group.num_rows)
        if begin < end:
            values.append(read(group).slice(begin, end - begin))
        start += group.num_rows
    places_R = np.concatenate([np.arange(part.start, part.stop) for part in rows]) - first
    return pa.concat_arrays(values).take(pa.array(places_R))


def _as_text(stored: pa.ChunkedArray) -> pa.Array:
    """Converts one value a row, of any container, to text."""
    kind = logical_type(stored.type)
    if kind is not None and not pa.types.is_decimal(stored.type):
        return plain_values(stored, kind).cast(pa.large_string())
    return one_chunk(stored).cast(pa.large_string())

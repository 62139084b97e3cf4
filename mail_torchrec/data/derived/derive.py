"""Derived columns of a table: the one function that training, evaluation and requests share.

Shapes: ``R`` rows of a table, ``V`` values of all rows end to end.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.ids.hashing import cross64
from mail_torchrec.data.parquet.arrow import Ints, list_lengths, one_chunk
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.parquet.times import MICROSECONDS, TIME, times_of_integers
from mail_torchrec.data.schema.columns import Column, TimePart, Transform
from mail_torchrec.data.schema.derivations import cross_column
from mail_torchrec.data.schema.schema import Schema

_PARTS = {
    TimePart.HOUR: pc.hour,
    TimePart.WEEKDAY: pc.day_of_week,
    TimePart.DAY: pc.day,
    TimePart.MONTH: pc.month,
    TimePart.YEAR: pc.year,
}


def with_derived(table: pa.Table, schema: Schema, file: str) -> pa.Table:
    """Appends the derived columns whose raw inputs a table has.

    Args:
        table: R rows with raw columns in plain types, of files or of requests.
        schema: derived columns.
        file: name of the table for messages.

    Raises:
        ValueError: a time outside of the years 1 to 9999; with file, column and row.
    """
    for name in schema.derived:
        column = schema.columns[name]
        target = schema.file_column(name)
        if target in table.column_names or not set(_needed(schema, name)) <= {*table.column_names}:
            continue
        if column.cross is not None:
            values = _crossed(table, column, schema, file)
        elif column.age_of is not None:
            values = _ages(table, column, column.column or name, file)
        else:
            values = _parts(table, column, column.column or name, file)
        table = table.append_column(target, values)
    return table


def _needed(schema: Schema, name: str) -> list[str]:
    """Returns the columns of a table that a derived column is computed from."""
    cross = schema.columns[name].cross
    if cross is not None:
        return [cross_column(part, schema.columns) for part in cross]
    return schema.raw_columns(name)


def _crossed(table: pa.Table, column: Column, schema: Schema, file: str) -> pa.Array:
    """Hashes the values of several columns together, as int64; null where all are null."""
    assert column.cross is not None
    sources = [cross_column(part, schema.columns) for part in column.cross]
    parts = [plain_ids(table[source], file=file, name=source) for source in sources]
    hashes_R = cross64(parts).view(np.int64)
    is_null_R = np.logical_and.reduce([pc.is_null(part).to_numpy(False) for part in parts])
    return pa.array(hashes_R, mask=is_null_R)


def _parts(table: pa.Table, column: Column, source: str, file: str) -> pa.Array:
    """Takes a part of each time, as int64."""
    assert column.part is not None
    times = _times(table[source], column, source, file)
    local = pc.assume_timezone(times, "UTC").cast(pa.timestamp("us", column.zone or "UTC"))
    if column.part is TimePart.HOUR_OF_WEEK:
        parts = pc.add(pc.multiply(pc.day_of_week(local), 24), pc.hour(local))
    else:
        parts = _PARTS[column.part](local)
    return _like(table[source], parts.cast(pa.int64()))


def _ages(table: pa.Table, column: Column, source: str, file: str) -> pa.Array:
    """Subtracts times, one or a list a row, from that of the row, as float64 in a unit."""
    assert column.age_of is not None
    of = table[column.age_of]
    times = _times(of, column, column.age_of, file)
    now = _times(table[source], column, source, file)
    if _is_list(of):
        now = now.take(pa.array(np.repeat(np.arange(len(table)), list_lengths(of))))
    ages = pc.subtract(now.cast(pa.int64()), times.cast(pa.int64())).cast(pa.float64(), safe=False)
    if column.transform is Transform.LOG:  # clocks differ, and a logarithm has no negative ages
        ages = pc.if_else(pc.less(ages, 0.0), 0.0, ages)
    return _like(of, pc.divide(ages, float(MICROSECONDS[column.age_unit])))


def _times(column: pa.ChunkedArray, settings: Column, name: str, file: str) -> pa.Array:
    """Converts plain times, or integers in a unit, to :data:`TIME` end to end."""
    values = one_chunk(pc.list_flatten(column) if _is_list(column) else column)
    if values.type == TIME:
        return values
    if values.null_count == len(values):
        return pa.nulls(len(values), TIME)
    assert settings.time_unit is not None, "integers have a unit"
    integers_V = pc.fill_null(values, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    times_V, wrong = times_of_integers(integers_V, settings.time_unit)
    if wrong is not None:
        row = _row(column, wrong)
        raise ValueError(
            f"{file}: column '{name}' should hold times of the years 1 to 9999 in "
            f"{settings.time_unit}s from 1970, received {integers_V[wrong]} in row {row} of its "
            "row group; correct it, or the column's time_unit"
        )
    is_null_V = pc.is_null(values).to_numpy(zero_copy_only=False)
    return pa.array(times_V, TIME, mask=is_null_V)


def _row(column: pa.ChunkedArray, place: int) -> int:
    """Returns the row of a value at a place among all values."""
    if not _is_list(column):
        return place
    ends_R: Ints = np.cumsum(list_lengths(column))
    return int(np.searchsorted(ends_R, place, side="right"))


def _like(column: pa.ChunkedArray, values: pa.Array) -> pa.Array:
    """Arranges values as the rows of a column: as they are, or in lists of the same lengths."""
    if not _is_list(column):
        return values
    offsets = np.concatenate([[0], np.cumsum(list_lengths(column))])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)


def _is_list(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_nested(column.type))

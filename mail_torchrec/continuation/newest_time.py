"""Newest day of the times in files, as their footers tell."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from mail_torchrec.data.parquet.access import reading
from mail_torchrec.data.parquet.parquet_file import ParquetFile
from mail_torchrec.data.parquet.times import MICROSECONDS
from mail_torchrec.data.schema.schema import Schema


def newest_day(files: Sequence[ParquetFile], schema: Schema) -> date | None:
    """Finds the newest day, in UTC, of the columns of times that the schema has parts or ages of.

    Args:
        files: that the run is trained on.
        schema: names the columns, and the units of integers.

    Returns:
        None where the schema has no such column, or the footer of a file does not tell.
    """
    units = {
        column.column or name: column.time_unit
        for name, column in schema.columns.items()
        if column.part is not None or column.age_of is not None
    }
    days = [
        _newest(file, column, unit)
        for column, unit in units.items()
        for file in files
        if file.num_rows
    ]
    known = [day for day in days if day is not None]
    return max(known) if known and len(known) == len(days) else None


def _newest(file: ParquetFile, column: str, unit: str | None) -> date | None:
    with reading(file.path):
        metadata = file.fragment.metadata
    days = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        for leaf in range(group.num_columns):
            if (chunk := group.column(leaf)).path_in_schema == column:
                stored = chunk.statistics
                if stored is None or not stored.has_min_max:
                    return None
                days.append(_day(stored.max, unit))
    return None if None in days else max(filter(None, days), default=None)


def _day(value: object, unit: str | None) -> date | None:
    """Converts a time of a footer; None for what is none."""
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).date()
    if isinstance(value, date):
        return value
    if isinstance(value, int) and unit is not None:
        return date(1970, 1, 1) + timedelta(days=value * MICROSECONDS[unit] // MICROSECONDS["day"])
    return None

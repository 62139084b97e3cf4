"""Sampled rows of the training, validation or test files, with labels and days.

Shapes: ``R`` rows that are read together, ``G`` rows of a row group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mail_torchrec.data.checks.values import check_values
from mail_torchrec.data.column_types import ColumnTypes
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.parquet.arrow import Bools, Ints, binary
from mail_torchrec.data.parquet.selection import DataPart
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import RowGroup, Source
from mail_torchrec.data.validation_split import RowSplit, ValidationSettings
from mail_torchrec.data_check.check_report import CheckReport
from mail_torchrec.data_check.column_profile import ColumnProfile
from mail_torchrec.data_check.sample import read_sample

_GROUP_ROWS = 131_072  # of one row group that are looked at, at most
_MAX_FAULTS = 5
"""Bad row groups of one part that are named."""


@dataclass(frozen=True)
class ScannedRows:
    """Rows of one row group as training reads them.

    Args:
        table: R rows with the files' columns and derived ones, in plain types.
        file: path of the file.
        where: file and row group, for messages.
        clicked_R: labels.
        days_R: day of each row, counted from 1970; None without a column of times.
    """

    table: pa.Table
    file: str
    where: str
    clicked_R: Bools
    days_R: Ints | None


@dataclass(frozen=True)
class Part:
    """Training, validation or test files, and the row groups that are looked at.

    Args:
        name: ``training``, ``validation`` or ``test``.
        source: selected row groups.
        num_rows: rows of all files.
        day: reads the day of each row; None where no column holds it.
        types: of the columns.
    """

    name: str
    source: Source
    num_rows: int
    day: RowSplit | None
    types: ColumnTypes

    @property
    def is_whole(self) -> bool:
        """True where all rows are looked at."""
        return self.num_read == self.num_rows

    @property
    def num_read(self) -> int:
        """Rows that are looked at."""
        return sum(min(group.num_rows, _GROUP_ROWS) for group in self.source.row_groups)

    def rows(
        self, schema: Schema, encoders: Encoders | None, report: CheckReport
    ) -> Iterator[ScannedRows]:
        """Reads the selected rows; row groups that cannot be read are errors of the report.

        Args:
            schema: columns.
            encoders: of the training rows, whose vectors all others are as long as; or None.
            report: gets the errors.
        """
        num_faults = 0
        for group in self.source.row_groups:
            try:
                yield self._read(group, schema, encoders)
            except ValueError as error:
                num_faults += 1
                if num_faults <= _MAX_FAULTS:
                    report.error("values", str(error))
        if num_faults > _MAX_FAULTS:
            more = num_faults - _MAX_FAULTS
            report.error("values", f"{more} more row groups of {self.name} hold bad values")

    def _read(self, group: RowGroup, schema: Schema, encoders: Encoders | None) -> ScannedRows:
        source, where = self.source, self.source.file(group)
        file, label = source.files[group.file], schema.file_column(schema.label)
        table, days_R = self._table(group), None
        if self.day is not None:
            stored = file.read([self.day.column], group.index)
            days_R = self.day.numbers(stored, self.types, where)[: len(table)]
        dims = None if encoders is None else encoders.vector_dims
        check_values(table, schema, dims, where)
        clicked_R = binary(table[label], file=where, name=label)
        return ScannedRows(table, file.path, where, clicked_R, days_R)

    def _table(self, group: RowGroup) -> pa.Table:
        """Reads a row group, of a large one the first rows."""
        if group.num_rows <= _GROUP_ROWS:
            return self.source.whole(group)
        tables: list[pa.Table] = []
        for piece in self.source.pieces(group):
            tables.append(piece)
            if sum(map(len, tables)) >= _GROUP_ROWS:
                break
        return pa.concat_tables(tables).slice(0, _GROUP_ROWS)


def open_part(
    name: str,
    path: DataPart,
    schema: Schema,
    known: ColumnTypes | None,
    max_rows: int,
    report: CheckReport,
) -> Part | None:
    """Opens the files of a part; None, and an error in the report, where it cannot.

    Args:
        name: ``training``, ``validation`` or ``test``.
        path: of the files.
        schema: columns.
        known: types of the training files' columns; None for training itself.
        max_rows: rows to look at.
        report: gets the error.
    """
    try:
        source = Source(path, schema, known)
    except ValueError as error:
        report.error("files", str(error))
        if not known:
            return None
        try:
            source = Source(path, schema, {})
        except ValueError:
            return None
    chosen = source.select(spread(source.row_groups, max_rows))
    return Part(name, chosen, source.num_rows, find_day(source, schema), source.types)


def spread(groups: Sequence[RowGroup], max_rows: int) -> list[RowGroup]:
    """Chooses whole row groups evenly over all files; at least one."""
    total = sum(min(group.num_rows, _GROUP_ROWS) for group in groups)
    count = max(1, min(len(groups), len(groups) * max_rows // total))
    return [groups[index * len(groups) // count] for index in range(count)]


def find_day(source: Source, schema: Schema) -> RowSplit | None:
    """Finds the column of the files that tells the day of a row; None without one."""
    sample = read_sample(source.files[:1], 1_000)
    profiles = [
        ColumnProfile(name, sample.table[name], kind) for name, kind in sample.stored.items()
    ]
    times = [
        column
        for column in profiles
        if column.is_time and not column.is_list and not column.null_share
    ]
    times = [column for column in times if column.time_unit != "microsecond"]
    times.sort(key=_likelihood)
    if not times:
        return None
    given = {"last_days": 1, "column": times[0].name, "unit": times[0].time_unit}
    return RowSplit(ValidationSettings.model_validate(given), schema)


def _likelihood(column: ColumnProfile) -> tuple[bool, bool]:
    """Sorts the times of the rows before those of items and users, by their names."""
    first = {"day", "date", "dt", "ds"}
    second = {"time", "timestamp", "ts", "datetime"}
    return not column.words <= first, not column.words & second


def day_name(day: int) -> str:
    """Writes a day counted from 1970."""
    return str(np.datetime64(int(day), "D"))

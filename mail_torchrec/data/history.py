"""The one policy that limits the ids a row shows of its lists, its behaviour histories above all.

Fitting, reading, serving and golden requests all ask :class:`HistoryLimits`, so that a model is
served the same histories it was trained on. A list shows its newest ``max_length`` ids. A behaviour
list of a user hidden by the simulated cold start shows the newest ``cold_start.keep`` of them.

Shapes: ``R`` rows of a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.cold_start import ColdStartSettings, hidden_users
from mail_torchrec.data.parquet.arrow import Bools, Ints, finite_values, list_lengths, one_chunk
from mail_torchrec.data.parquet.jagged import JaggedArray
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.parquet.times import MICROSECONDS, plain_times
from mail_torchrec.data.schema.schema import Group, Kind, Schema

_LAST_DAY = 99991231
_ALL = np.iinfo(np.int64).max
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class HistoryLimits:
    """Limits the ids that each row of a table shows of its list columns.

    Two rows, of which the first is a hidden user's with ``keep: 1``, and ``max_length: 2``::

        history    [5, 6, 7]   [5, 6, 7]
        shown      [7]         [6, 7]
    """

    schema: Schema
    is_hidden_R: Bools
    """Rows of users whom the simulated cold start hides (they may keep all: the oracle's do)."""
    max_behaviours_R: Ints
    """Maximum number of behaviours of a sequence that each row shows, before ``max_length``."""

    @staticmethod
    def simulated(
        schema: Schema,
        keys: pa.Array | pa.ChunkedArray,
        cold_start: ColdStartSettings,
        days_R: Ints | None = None,
    ) -> "HistoryLimits":
        """Limits of training and evaluation, with the simulated cold start.

        Args:
            schema: list columns and their ``max_length``.
            keys: group keys [R].
            cold_start: settings of the simulation.
            days_R: day of each row [R], see :func:`row_days`.

        Raises:
            ValueError: the keys are of a type that cannot be hashed.
        """
        is_hidden_R = hidden_users(keys, cold_start, days_R)
        is_limited_R = is_hidden_R & (not cold_start.oracle)
        return HistoryLimits(schema, is_hidden_R, np.where(is_limited_R, cold_start.keep, _ALL))

    @staticmethod
    def served(schema: Schema, num_rows: int) -> "HistoryLimits":
        """Limits of serving: ``max_length`` alone, for requests of ``num_rows`` rows."""
        return HistoryLimits(schema, np.zeros(num_rows, np.bool_), np.full(num_rows, _ALL))

    def max_ids(self, name: str) -> int | Ints:
        """Returns the maximum number of ids that a list column shows, for all rows or each [R]."""
        column = self.schema.columns[name]
        if column.group is not Group.BEHAVIOUR:
            return column.max_length
        return np.minimum(self.max_behaviours_R, column.max_length)

    def shown(self, table: pa.Table, name: str) -> JaggedArray:
        """Selects the shown ids of a list column as positions among all its ids, end to end.

        Args:
            table: R rows with the files' columns.
            name: the list column of the schema.

        Returns:
            Lengths and starts of R rows; it stores no values.
        """
        lengths_R = list_lengths(table[self.schema.file_column(name)])
        return JaggedArray(np.zeros(0, np.int64), lengths_R).newest(self.max_ids(name))

    def shown_ids(self, table: pa.Table, name: str, file: str) -> tuple[pa.Array, Ints]:
        """Returns the shown ids of a column.

        Args:
            table: R rows with the files' columns.
            name: a column of the schema, a list of ids or one id a row.
            file: for messages.

        Returns:
            The ids end to end, and their number in each row, [R].

        Raises:
            ValueError: as :func:`column_ids`.
        """
        ids = column_ids(table, self.schema, name, file)
        if self.schema.columns[name].kind is not Kind.LIST:
            return ids, np.ones(len(table), dtype=np.int64)
        shown = self.shown(table, name)
        if shown.lengths.sum() == len(ids):
            return ids, shown.lengths
        return ids.take(pa.array(shown.positions)), shown.lengths

    def shown_behaviours(self, behaviours: Sequence[_Value], row: int) -> Sequence[_Value]:
        """Cuts one row's behaviours to what the simulated cold start shows, oldest first."""
        return behaviours[max(len(behaviours) - int(self.max_behaviours_R[row]), 0) :]

    def is_cut(self, table: pa.Table, name: str) -> Bools:
        """Returns True for rows whose list lost ids to ``max_length`` alone, [R]."""
        column = self.schema.columns[name]
        lengths_R = list_lengths(table[self.schema.file_column(name)])
        is_cut_R: Bools = lengths_R > column.max_length
        if column.group is Group.BEHAVIOUR:
            return is_cut_R & (self.max_behaviours_R > column.max_length)
        return is_cut_R

    def num_behaviours(self, table: pa.Table, *, hidden: bool = False) -> Ints:
        """Counts the behaviours of each row in all its sequences, [R], not cut to ``max_length``.

        Args:
            table: R rows with the files' columns.
            hidden: count those too that the simulated cold start hides.
        """
        lengths = [
            list_lengths(table[self.schema.file_column(name)]) for name in self.schema.sequences
        ]
        limits_R = np.full(len(table), _ALL) if hidden else self.max_behaviours_R
        num_R: Ints = np.sum(np.minimum(lengths, limits_R), axis=0)
        return num_R

    @property
    def is_limited_R(self) -> Bools:
        """Rows of which the simulated cold start hides behaviours beyond ``cold_start.keep``."""
        is_limited_R: Bools = self.max_behaviours_R < _ALL
        return is_limited_R


def row_days(table: pa.Table, schema: Schema, file: str) -> Ints | None:
    """Returns the day of each row, [R]; None where the schema has no column of days.

    Days of dates and timestamps are those of UTC; an integer, such as 20240531, is a day by itself.

    Args:
        table: R rows with the files' columns.
        schema: columns.
        file: for messages.

    Raises:
        ValueError: a row without a day, or an integer that rather is a time.
    """
    if schema.day is None:
        return None
    name = schema.file_column(schema.day)
    values = one_chunk(table[name])
    if values.null_count:
        row = int(np.argmax(pc.is_null(values).to_numpy(zero_copy_only=False)))
        raise ValueError(
            f"{file}: column '{name}' (the day) should not be null, received null in row {row} of "
            f"its row group ({values.null_count} nulls); drop the row or give it a day"
        )
    if pa.types.is_temporal(values.type):
        times_R: Ints = plain_times(values).cast(pa.int64()).to_numpy()
        return times_R // MICROSECONDS["day"]
    days_R: Ints = values.to_numpy()
    if len(days_R) and days_R.max() > _LAST_DAY:
        raise ValueError(
            f"{file}: column '{name}' (the day) should hold dates, timestamps or integers such as "
            f"20240531, received {days_R.max()}, rather a time; store it as a timestamp"
        )
    return days_R


def column_ids(table: pa.Table, schema: Schema, name: str, file: str) -> pa.Array:
    """Returns the ids of all rows end to end: int64, large_string, or float64 of bucketed columns.

    Args:
        table: R rows with the files' columns.
        schema: columns and tables.
        name: a column of ids, one or a list a row.
        file: for messages.

    Raises:
        ValueError: an unsigned id above the range of int64; a bucketed number that is not finite.
    """
    file_column = schema.file_column(name)
    column = table[file_column]
    if name in schema.bucketed:
        return finite_values(column, file=file, name=file_column)
    is_list = schema.columns[name].kind is Kind.LIST
    values = pc.list_flatten(column) if is_list else column
    return plain_ids(values, file=file, name=file_column)


@dataclass(frozen=True)
class MisalignedRow:
    """A row whose lists of one sequence are not equally long; the columns are the files'."""

    row: int
    items: str
    actions: str
    """Column of the actions, or of another part of the sequence."""
    num_items: int
    num_actions: int
    entries: str = "actions"

    def __str__(self) -> str:
        return (
            f"column '{self.actions}' should be as long as '{self.items}' in every row, received "
            f"{self.num_actions} {self.entries} on {self.num_items} items"
        )


def find_misaligned_row(table: pa.Table, schema: Schema) -> MisalignedRow | None:
    """Finds the first row with misaligned lists, of the first such sequence; None: all align."""
    for sequence in schema.sequences:
        items, entries = schema.file_column(sequence), "actions"
        if sequence in schema.declared_sequences:
            entries = "entries"
        for aligned in schema.actions_of(sequence):
            column = schema.file_column(aligned)
            num_items_R, num_R = (list_lengths(table[name]) for name in (items, column))
            if len(wrong := np.flatnonzero(num_items_R != num_R)):
                row = int(wrong[0])
                return MisalignedRow(
                    row, items, column, int(num_items_R[row]), int(num_R[row]), entries
                )
    return None

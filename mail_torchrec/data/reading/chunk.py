"""Encoded rows in memory: what a row group becomes before it is shuffled and cut into batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.cold_start import ALL, ColdStartSettings, hidden_users, most_behaviours
from mail_torchrec.data.encoders import Encoders, misaligned, most_ids
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.parquet.arrow import (
    Bools,
    Floats,
    Ints,
    JaggedArray,
    binary,
    list_lengths,
    numbers,
    plain_ids,
)
from mail_torchrec.data.schema.schema import Group, Schema


@dataclass
class Chunk:
    """Rows as NumPy arrays.

    ``R`` rows, ``C`` columns of one id (``schema.scalars``), ``L`` list columns (``schema.lists``),
    ``N`` numeric columns.
    """

    lists: dict[str, JaggedArray]
    """List column -> table rows."""
    scalars_CR: Ints
    """Table rows, column by column as batches hold them."""
    numeric_RN: Floats
    labels_R: Bools
    conversions_R: Bools
    """The conversion column as it is in the files, also on rows without a click; all False where
    the schema has none."""
    users_R: Ints
    is_cold_R: Bools
    is_new_R: Bools
    is_cut_RL: Bools
    """True where a list was cut to its newest entries."""

    def __len__(self) -> int:
        return len(self.labels_R)

    def take(self, rows: Ints | slice) -> "Chunk":
        """These rows, in this order."""
        lists = {name: ragged.take(rows) for name, ragged in self.lists.items()}
        scalars = (
            self.scalars_CR[:, rows]
            if isinstance(rows, slice)
            else self.scalars_CR.take(rows, axis=1)
        )
        return Chunk(lists, scalars, *(array[rows] for array in self._by_row()))

    @staticmethod
    def concatenate(parts: "list[Chunk]") -> "Chunk":
        """Rows of several windows, one after another."""
        lists = {
            name: JaggedArray.concatenate([part.lists[name] for part in parts])
            for name in parts[0].lists
        }
        scalars = np.concatenate([part.scalars_CR for part in parts], axis=1)
        arrays = [
            np.concatenate(arrays)
            for arrays in zip(*(part._by_row() for part in parts), strict=True)
        ]
        return Chunk(lists, scalars, *arrays)

    def _by_row(self) -> tuple[Any, ...]:
        """What has a row's entries side by side, in the order of the constructor."""
        rows = self.labels_R, self.conversions_R, self.users_R, self.is_cold_R, self.is_new_R
        return self.numeric_RN, *rows, self.is_cut_RL


@dataclass(frozen=True)
class ChunkEncoder:
    """Arrow rows -> :class:`Chunk`."""

    schema: Schema
    encoders: Encoders
    cold_start: ColdStartSettings
    new_user_max_behaviours: int

    def __call__(self, table: pa.Table, file: str) -> Chunk:
        """Checks and encodes the rows of one row group.

        Raises:
            ValueError: a value that cannot be trained on; the message names file, column, row,
                value and remedy.
        """
        schema = self.schema
        if (found := misaligned(table, schema)) is not None:
            raise ValueError(
                f"{file}: {found} in row {found.row} of its row group; align the two lists"
            )
        users = self._users(table, file)
        hidden = hidden_users(users, self.cold_start)
        most_R = most_behaviours(hidden, self.cold_start)
        native_new = self._native_new(table, file)
        return Chunk(
            {name: self._list(table, name, file, most_R) for name in schema.lists},
            _side_by_side(
                [self._scalar(table, name, file) for name in schema.scalars],
                len(table),
                np.int64,
                axis=0,
            ),
            _side_by_side(
                [self._numbers(table, name, file) for name in schema.numeric()],
                len(table),
                np.float32,
            ),
            self._binary(table, schema.label, file),
            self._binary(table, schema.conversion, file)
            if schema.conversion
            else np.zeros(len(table), np.bool_),
            hash64(users, "user").view(np.int64),
            native_new | self._made_new(table, most_R),
            native_new | hidden,
            _side_by_side(
                [self._is_cut(table, name, most_R) for name in schema.lists], len(table), np.bool_
            ),
        )

    def _list(self, table: pa.Table, name: str, file: str, most_R: Ints) -> JaggedArray:
        column = table[self.schema.file_column(name)]
        kept = JaggedArray(np.zeros(0, np.int64), list_lengths(column)).newest(
            most_ids(self.schema, name, most_R)
        )
        ids = plain_ids(pc.list_flatten(column), file=file, name=self.schema.file_column(name))
        if 2 * kept.lengths.sum() < len(
            ids
        ):  # else to encode what nobody needs is cheaper than to pick what is needed
            ids, kept = ids.take(pa.array(kept.positions)), JaggedArray(kept.stored, kept.lengths)
        return JaggedArray(self._encode(name, file, ids), kept.lengths, kept.begins)

    def _users(self, table: pa.Table, file: str) -> pa.Array:
        name = self.schema.file_column(self.schema.group_key)
        users = plain_ids(table[name], file=file, name=name)
        if users.null_count:
            row = int(np.argmax(pc.is_null(users).to_numpy(zero_copy_only=False)))
            raise ValueError(
                f"{file}: column '{name}' (the group key) should not be null, received null in "
                f"row {row} of its row group "
                f"({users.null_count} nulls); drop the row or give it a user"
            )
        return users

    def _scalar(self, table: pa.Table, name: str, file: str) -> Ints:
        column = self.schema.file_column(name)
        return self._encode(name, file, plain_ids(table[column], file=file, name=column))

    def _encode(self, name: str, file: str, ids: pa.Array) -> Ints:
        try:
            return self.encoders.tables[self.schema.table_of(name)].encode(ids)
        except ValueError as error:
            raise ValueError(
                f"{file}: column '{self.schema.file_column(name)}': {error}"
            ) from error

    def _is_cut(self, table: pa.Table, name: str, most_R: Ints) -> Bools:
        column = self.schema.columns[name]
        is_cut: Bools = list_lengths(table[self.schema.file_column(name)]) > column.max_length
        return is_cut & (most_R > column.max_length) if column.group is Group.BEHAVIOUR else is_cut

    def _numbers(self, table: pa.Table, name: str, file: str) -> Floats:
        column = self.schema.file_column(name)
        values = numbers(table[column], self.schema.columns[name].transform, file=file, name=column)
        return self.encoders.scales[name].apply(values)

    def _binary(self, table: pa.Table, name: str, file: str) -> Bools:
        column = self.schema.file_column(name)
        return binary(table[column], file=file, name=column)

    def _native_new(self, table: pa.Table, file: str) -> Bools:
        if (flag := self.schema.new_user) is not None:
            return self._binary(table, flag, file)
        few: Bools = (
            self._num_behaviours(table, np.full(len(table), ALL)) <= self.new_user_max_behaviours
        )
        return few

    def _made_new(self, table: pa.Table, most_R: Ints) -> Bools:
        """Rows that the simulated cold start left no more behaviours than a new user may have."""
        return (most_R < ALL) & (
            self._num_behaviours(table, most_R) <= self.new_user_max_behaviours
        )

    def _num_behaviours(self, table: pa.Table, most_R: Ints) -> Ints:
        """How many each row has in all sequences together, ``most_R`` of each counted."""
        lengths = [
            list_lengths(table[self.schema.file_column(name)]) for name in self.schema.sequences
        ]
        num_R: Ints = np.sum(np.minimum(lengths, most_R), axis=0)
        return num_R


def _side_by_side(columns: list[Any], num_rows: int, dtype: Any, axis: int = 1) -> Any:
    """Columns as one array [num_rows, len(columns)], or the other way round along axis 0."""
    if columns:
        return np.stack(columns, axis=axis)
    return np.zeros((num_rows, 0) if axis else (0, num_rows), dtype)

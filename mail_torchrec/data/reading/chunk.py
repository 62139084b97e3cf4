"""Encoded rows in memory, and the encoding of a row group's Arrow columns.

Shapes: ``R`` rows, ``C`` columns of one id (``schema.scalars``), ``L`` list columns
(``schema.lists``), ``N`` numeric columns (``schema.numeric()``), ``E`` elements of a vector.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.content.vector_values import vector_values
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.history import (
    HistoryLimits,
    column_ids,
    find_misaligned_row,
    row_days,
)
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.items.new_items import ItemCohorts, ItemFlags
from mail_torchrec.data.items.settings import NewItemSettings
from mail_torchrec.data.new_users import new_user_rows
from mail_torchrec.data.numeric import numeric_values
from mail_torchrec.data.parquet.arrow import Bools, Floats, Ints, binary
from mail_torchrec.data.parquet.jagged import JaggedArray
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.task_labels import task_labels
from mail_torchrec.data.weights.list_weights import list_weights
from mail_torchrec.data.weights.positions import hide_positions, position_rows
from mail_torchrec.data.weights.row_weights import row_weights


@dataclass
class Chunk:
    """Encoded rows, which are shuffled together and cut into batches."""

    lists: dict[str, JaggedArray]
    """Table rows of each list column, and the shares of each column of list weights (float32)."""
    scalars_CR: Ints
    """Table rows, column by column as batches hold them."""
    numeric_RN: Floats
    labels_R: Bools
    conversions_R: Bools
    """Conversion column as it is in the files, also on rows without a click; all False where the
    schema has none."""
    users_R: Ints
    """Hash of the group key."""
    is_cold_R: Bools
    """Rows that the model must score without usable behaviours."""
    is_new_R: Bools
    """Rows reported as new users'."""
    weights_R: Floats
    """Weight of each row in losses and metrics."""
    is_cut_RL: Bools
    """Rows whose list was cut to its newest ``max_length`` entries."""
    vectors: dict[str, Floats] = field(default_factory=dict)
    """Standardised vectors [R, E] of each vector column."""
    task_labels: dict[str, Floats] = field(default_factory=dict)
    """Labels [R] of each column of further tasks, NaN where they are null."""
    items: ItemFlags | None = None
    """Flags of the candidate items; None where nothing says which items are new."""

    def __len__(self) -> int:
        return len(self.labels_R)

    def take(self, rows: Ints | slice) -> "Chunk":
        """Returns some of the rows, in the given order.

        Args:
            rows: their indices [rows], or a slice.
        """
        lists = {name: jagged.take(rows) for name, jagged in self.lists.items()}
        if isinstance(rows, slice):
            scalars_CR = self.scalars_CR[:, rows]
        else:
            scalars_CR = self.scalars_CR.take(rows, axis=1)  # faster than an index
        vectors = {name: vectors_RE[rows] for name, vectors_RE in self.vectors.items()}
        labels = {name: labels_R[rows] for name, labels_R in self.task_labels.items()}
        items = None if self.items is None else self.items.take(rows)
        arrays = [*(array[rows] for array in self._row_arrays()), vectors, labels, items]
        return Chunk(lists, scalars_CR, *arrays)

    @staticmethod
    def concatenate(parts: "list[Chunk]") -> "Chunk":
        """Appends the rows of several chunks to one another."""
        lists = {
            name: JaggedArray.concatenate([part.lists[name] for part in parts])
            for name in parts[0].lists
        }
        scalars = np.concatenate([part.scalars_CR for part in parts], axis=1)
        vectors = {
            name: np.concatenate([part.vectors[name] for part in parts])
            for name in parts[0].vectors
        }
        labels = {
            name: np.concatenate([part.task_labels[name] for part in parts])
            for name in parts[0].task_labels
        }
        of_rows = zip(*(part._row_arrays() for part in parts), strict=True)
        flags = [part.items for part in parts if part.items is not None]
        items = ItemFlags.concatenate(flags) if flags else None
        arrays: list[Any] = [*map(np.concatenate, of_rows), vectors, labels, items]
        return Chunk(lists, scalars, *arrays)

    def _row_arrays(self) -> tuple[Any, ...]:
        """Returns the arrays whose first axis is the rows, in the order of the constructor."""
        rows = self.labels_R, self.conversions_R, self.users_R, self.is_cold_R, self.is_new_R
        return self.numeric_RN, *rows, self.weights_R, self.is_cut_RL


@dataclass(frozen=True)
class ChunkEncoder:
    """Checks and encodes the rows of row groups.

    Args:
        schema: columns and tables.
        encoders: of ids and numbers.
        cold_start: settings of the simulation.
        new_user_max_behaviours: rows with at most so many behaviours are new users'.
        reads_positions: of training rows; for all others a position is a constant.
        new_items: rule for new items.
    """

    schema: Schema
    encoders: Encoders
    cold_start: ColdStartSettings
    new_user_max_behaviours: int
    reads_positions: bool = False
    new_items: NewItemSettings | None = None

    @cached_property
    def _items(self) -> ItemCohorts | None:
        hidden = self.cold_start.items
        return ItemCohorts.of(self.schema, self.encoders.tables, self.new_items, hidden)

    @cached_property
    def _constants(self) -> dict[str, int]:
        """Columns whose id is the same in every row, and its row of the table."""
        return {} if self.reads_positions else position_rows(self.schema, self.encoders)

    def __call__(self, table: pa.Table, file: str) -> Chunk:
        """Checks and encodes the rows of one row group.

        Args:
            table: R rows with the files' columns.
            file: for messages.

        Raises:
            ValueError: a value that cannot be trained on; the message names file, column, row,
                value and remedy.
        """
        if (found := find_misaligned_row(table, self.schema)) is not None:
            raise ValueError(
                f"{file}: {found} in row {found.row} of its row group; align the two lists"
            )
        users = self._users(table, file)
        users_R, scalars_CR = user_hashes(users), self._scalars(table, file)
        if self.reads_positions:
            hide_positions(self.schema, scalars_CR, users_R)
        limits = HistoryLimits.simulated(
            self.schema, users, self.cold_start, row_days(table, self.schema, file)
        )
        is_new_R = new_user_rows(table, limits, self.new_user_max_behaviours, file)
        return Chunk(
            lists=self._lists(table, file, limits),
            scalars_CR=scalars_CR,
            numeric_RN=self._numeric(table, file),
            labels_R=self._binary(table, self.schema.label, file),
            conversions_R=self._conversions(table, file),
            users_R=users_R,
            is_cold_R=is_new_R | self._is_emptied(table, limits),
            is_new_R=is_new_R | limits.is_hidden_R,
            weights_R=row_weights(table, self.schema, file),
            is_cut_RL=_stack(
                [limits.is_cut(table, name) for name in self.schema.lists], len(table), np.bool_
            ),
            vectors={name: self._vectors(table, name, file) for name in self.schema.vectors()},
            task_labels=task_labels(table, self.schema, file),
            items=self._item_flags(table, scalars_CR, file),
        )

    def _item_flags(self, table: pa.Table, scalars_CR: Ints, file: str) -> ItemFlags | None:
        if (items := self._items) is None:
            return None
        return items.flags(table, scalars_CR[self.schema.scalars.index(items.item)], file)

    def _lists(self, table: pa.Table, file: str, limits: HistoryLimits) -> dict[str, JaggedArray]:
        lists = {name: self._list(table, name, file, limits) for name in self.schema.lists}
        for name, weights in self.schema.list_weights.items():
            shares, shown = list_weights(table, limits, name, file)
            lists[weights] = JaggedArray(shares, shown.lengths)
        return lists

    def _list(self, table: pa.Table, name: str, file: str, limits: HistoryLimits) -> JaggedArray:
        shown = limits.shown(table, name)
        ids = column_ids(table, self.schema, name, file)
        if 2 * shown.lengths.sum() >= len(ids):
            # To encode all ids is cheaper than to pick the shown ones.
            return JaggedArray(self._encode(name, file, ids), shown.lengths, shown.given_starts)
        shown_ids = ids.take(pa.array(shown.positions))
        return JaggedArray(self._encode(name, file, shown_ids), shown.lengths)

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

    def _scalars(self, table: pa.Table, file: str) -> Ints:
        """Encodes the columns of one id, [C, R]."""
        columns = []
        for name in self.schema.scalars:
            if (constant := self._constants.get(name)) is not None:
                columns.append(np.full(len(table), constant, np.int64))
                continue
            ids = column_ids(table, self.schema, name, file)
            columns.append(self._encode(name, file, ids))
        scalars_CR: Ints = _stack(columns, len(table), np.int64, axis=0)
        return scalars_CR

    def _encode(self, name: str, file: str, ids: pa.Array) -> Ints:
        try:
            rows_N = self.encoders.tables[self.schema.table_of(name)].encode(ids)
        except ValueError as error:
            raise ValueError(
                f"{file}: column '{self.schema.file_column(name)}': {error}"
            ) from error
        return rows_N if self._items is None else self._items.withhold(name, ids, rows_N)

    def _numeric(self, table: pa.Table, file: str) -> Floats:
        """Standardises the numeric columns, [R, N]."""
        columns = []
        for name in self.schema.numeric():
            column, transform = self.schema.file_column(name), self.schema.columns[name].transform
            values_R = numeric_values(table[column], transform, file=file, name=column)
            columns.append(self.encoders.scales[name].apply(values_R))
        numeric_RN: Floats = _stack(columns, len(table), np.float32)
        return numeric_RN

    def _vectors(self, table: pa.Table, name: str, file: str) -> Floats:
        """Standardises a column of vectors, [R, E]."""
        column, scale = self.schema.file_column(name), self.encoders.vectors[name]
        rows = "of its row group"
        return scale.apply(
            vector_values(table[column], scale.dim, file=file, name=column, rows=rows)
        )

    def _binary(self, table: pa.Table, name: str, file: str) -> Bools:
        column = self.schema.file_column(name)
        return binary(table[column], file=file, name=column)

    def _conversions(self, table: pa.Table, file: str) -> Bools:
        if (conversion := self.schema.conversion) is None:
            return np.zeros(len(table), np.bool_)
        return self._binary(table, conversion, file)

    def _is_emptied(self, table: pa.Table, limits: HistoryLimits) -> Bools:
        """Finds rows that the simulated cold start left no more than a new user's behaviours."""
        is_new_R = limits.num_behaviours(table) <= self.new_user_max_behaviours
        return limits.is_limited_R & is_new_R


def user_hashes(users: pa.Array | pa.ChunkedArray) -> Ints:
    """Hashes the group key of each row, [R]: rows of one user have one hash."""
    return hash64(users, "user").view(np.int64)


def _stack(columns: list[Any], num_rows: int, dtype: Any, axis: int = 1) -> Any:
    """Stacks columns as [num_rows, len(columns)], or as [len(columns), num_rows] for axis 0."""
    if columns:
        return np.stack(columns, axis=axis)
    return np.zeros((num_rows, 0) if axis else (0, num_rows), dtype)

"""Encoded rows in memory: what a row group becomes before it is shuffled and cut into batches."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.cold_start import ColdStartSettings, hidden_users
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.hashing import hash64
from mail_torchrec.data.schema import Group, Kind, Schema
from mail_torchrec.data.values import Bools, Floats, Ints, Ragged, binary, list_parts, numbers, plain_ids
from mail_torchrec.data.vocabulary import UNKNOWN_ROW


@dataclass
class Window:
    """Rows as NumPy arrays, column by column."""

    ids: dict[str, Ragged]
    """Column -> table rows."""
    numeric_RN: Floats
    labels_R: Bools
    users_R: Ints
    is_new_R: Bools
    is_cold_R: Bools
    num_cut: dict[str, Ints]
    """List column -> 1 where the list was cut to its newest entries."""

    def __len__(self) -> int:
        return len(self.labels_R)

    def take(self, rows: Ints) -> "Window":
        """These rows, in this order."""
        return Window(
            {name: ragged.take(rows) for name, ragged in self.ids.items()},
            self.numeric_RN[rows],
            self.labels_R[rows],
            self.users_R[rows],
            self.is_new_R[rows],
            self.is_cold_R[rows],
            {name: cut[rows] for name, cut in self.num_cut.items()},
        )

    @staticmethod
    def concatenate(parts: "list[Window]") -> "Window":
        """Rows of several windows, one after another."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        return Window(
            {name: Ragged.concatenate([part.ids[name] for part in parts]) for name in first.ids},
            np.concatenate([part.numeric_RN for part in parts]),
            np.concatenate([part.labels_R for part in parts]),
            np.concatenate([part.users_R for part in parts]),
            np.concatenate([part.is_new_R for part in parts]),
            np.concatenate([part.is_cold_R for part in parts]),
            {name: np.concatenate([part.num_cut[name] for part in parts]) for name in first.num_cut},
        )

    def num_unknown(self, column: str) -> int:
        """Ids of a column that its vocabulary does not hold."""
        return int(np.count_nonzero(self.ids[column].values == UNKNOWN_ROW))


@dataclass(frozen=True)
class WindowEncoder:
    """Arrow rows -> :class:`Window`."""

    schema: Schema
    encoders: Encoders
    cold_start: ColdStartSettings
    new_user_max_behaviours: int

    def __call__(self, table: pa.Table, file: str) -> Window:
        """Checks and encodes the rows of one file.

        Raises:
            ValueError: a value that cannot be trained on; the message names file, column, row, value and remedy.
        """
        schema, num_rows = self.schema, len(table)
        keys = plain_ids(table[schema.file_column(schema.group_key)])
        if keys.null_count:
            row = int(np.argmax(pc.is_null(keys).to_numpy(zero_copy_only=False)))
            raise ValueError(
                f"{file}: column '{schema.file_column(schema.group_key)}' (the group key) should not be null, received null in row {row} "
                "of its row group; drop the row or give it a user"
            )
        hidden = hidden_users(keys, self.cold_start)
        ids: dict[str, Ragged] = {}
        num_cut: dict[str, Ints] = {}
        for name in schema.id_columns:
            ids[name], cut = self._ids(table, name, file)
            if schema.columns[name].kind is Kind.LIST:
                num_cut[name] = cut
        self._check_aligned(table, file)
        native_new = self._native_new(table, ids, file)
        if not self.cold_start.oracle:
            ids |= {name: ids[name].without(hidden) for name in schema.names(Group.BEHAVIOUR)}
        is_new = native_new if self.cold_start.oracle else native_new | hidden
        numeric = [self._numbers(table, name, file) for name in schema.numeric()]
        label = schema.file_column(schema.label)
        return Window(
            ids,
            np.stack(numeric, axis=1) if numeric else np.zeros((num_rows, 0), dtype=np.float32),
            binary(table[label], file=file, name=label),
            hash64(keys, "user").view(np.int64),
            is_new,
            native_new | hidden,
            num_cut,
        )

    def _ids(self, table: pa.Table, name: str, file: str) -> tuple[Ragged, Ints]:
        column = self.schema.columns[name]
        encoder = self.encoders.tables[self.schema.table_of(name)]
        values = table[self.schema.file_column(name)]
        num_rows = len(table)
        try:
            if column.kind is not Kind.LIST:
                return Ragged(encoder.encode(plain_ids(values)), np.ones(num_rows, dtype=np.int64)), np.zeros(0, dtype=np.int64)
            flat, lengths = list_parts(values)
            ragged = Ragged(encoder.encode(flat), lengths)
        except ValueError as error:
            raise ValueError(f"{file}: column '{self.schema.file_column(name)}': {error}") from error
        return ragged.newest(column.max_length)[0], (lengths > column.max_length).astype(np.int64)

    def _numbers(self, table: pa.Table, name: str, file: str) -> npt.NDArray[np.float32]:
        column = self.schema.file_column(name)
        values = numbers(table[column], self.schema.columns[name].transform, file=file, name=column)
        return self.encoders.scales[name].apply(values)

    def _native_new(self, table: pa.Table, ids: dict[str, Ragged], file: str) -> Bools:
        if (flag := self.schema.new_user) is not None:
            name = self.schema.file_column(flag)
            return binary(table[name], file=file, name=name)
        num_behaviours = sum((ids[name].lengths for name in self.schema.sequences), np.zeros(len(table), dtype=np.int64))
        few: Bools = num_behaviours <= self.new_user_max_behaviours
        return few

    def _check_aligned(self, table: pa.Table, file: str) -> None:
        for sequence in self.schema.sequences:
            if (actions := self.schema.action_of(sequence)) is None:
                continue
            columns = [self.schema.file_column(name) for name in (sequence, actions)]
            items, acts = (pc.fill_null(pc.list_value_length(table[column]), 0).to_numpy() for column in columns)
            if len(wrong := np.flatnonzero(items != acts)):
                row = wrong[0]
                raise ValueError(
                    f"{file}: column '{columns[1]}' should be as long as '{columns[0]}' in every row, received {acts[row]} actions on {items[row]} items "
                    f"in row {row} of its row group; align the two lists"
                )

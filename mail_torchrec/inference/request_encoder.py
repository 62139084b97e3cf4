"""Encoding of raw requests as the inputs of an exported model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mail_torchrec.data.content.vector_values import vector_values
from mail_torchrec.data.derived.derive import with_derived
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.history import HistoryLimits, find_misaligned_row
from mail_torchrec.data.items.new_items import ItemCohorts
from mail_torchrec.data.items.settings import NewItemSettings
from mail_torchrec.data.numeric import numeric_values
from mail_torchrec.data.padding import drop_padding
from mail_torchrec.data.parquet.arrow import Ints, binary
from mail_torchrec.data.parquet.jagged import JaggedArray
from mail_torchrec.data.parquet.logical_types import plain_vectors
from mail_torchrec.data.schema.schema import Column, Group, Kind, Schema
from mail_torchrec.data.weights.list_weights import list_weights
from mail_torchrec.inference.requests import (
    NEW_ITEM_OF_CANDIDATE,
    USER_OF_CANDIDATE,
    RawColumn,
    RawColumns,
    Request,
    candidate_columns,
    length_input,
    list_of_weights,
    new_item_input,
    request_columns,
    user_columns,
)
from mail_torchrec.inference.values import ValueType, file_values, to_table

EncodedInputs = dict[str, npt.NDArray[Any]]
"""Arrays by input name, each shaped as its :class:`InputSpec` says."""


@dataclass(frozen=True)
class RequestEncoder:
    """Encodes raw requests as the training reader encodes rows of files.

    Lists keep their newest ``max_length`` entries, ids become table rows (row 0 for unknown ones,
    row 1 for nulls), numbers are transformed and standardised.

    Args:
        schema: columns and tables of the model.
        encoders: fitted id encoders and scales.
        types: value type of each raw column.
        new_items: rule for new items, which makes an input of its own.
    """

    schema: Schema
    encoders: Encoders
    types: Mapping[str, ValueType]
    new_items: NewItemSettings | None = None

    def __call__(self, requests: Sequence[Request]) -> EncodedInputs:
        """Encodes several requests together, the candidates of one request after another.

        Raises:
            ValueError: a value that cannot be scored; the message names column and value.
        """
        self._check_names(requests)
        users = [request.user for request in requests]
        candidates = [candidate for request in requests for candidate in request.candidates]
        counts = [len(request.candidates) for request in requests]
        user_of_candidate = np.repeat(np.arange(len(requests)), counts)
        of_users = self._table(users, self._raw.user, "user")
        of_candidates = self._table(candidates, self._raw.candidate, "candidate")
        of_candidates = self._with_user_values(of_candidates, of_users, user_of_candidate)
        return (
            self._encode_users(of_users)
            | self._encode_candidates(of_candidates)
            | {USER_OF_CANDIDATE: user_of_candidate}
        )

    @cached_property
    def _raw(self) -> RawColumns:
        return request_columns(self.schema)

    @cached_property
    def _items(self) -> ItemCohorts:
        items = ItemCohorts.of(self.schema, self.encoders.tables, self.new_items, None)
        assert items is not None, "there is a rule"
        return items

    def _with_user_values(
        self, table: pa.Table, users: pa.Table, user_of_candidate: Ints
    ) -> pa.Table:
        """Appends the users' values that derived columns of items need."""
        for name in self.schema.derived:
            if self.schema.columns[name].group is Group.ITEM:
                for raw in self.schema.raw_columns(name):
                    if raw not in table.column_names:
                        values = users[raw].take(pa.array(user_of_candidate))
                        table = table.append_column(raw, values)
        return table

    def users(self, table: pa.Table, source_name: str) -> EncodedInputs:
        """Encodes the users' inputs of a table with the files' columns, one user a row.

        Args:
            table: context columns may be missing: they count as null.
            source_name: name of the table in error messages.

        Raises:
            ValueError: a column is missing, or a value cannot be scored.
        """
        columns = {
            raw: self._file_values(table, column, source_name)
            for raw, column in self._raw.user.items()
        }
        return self._encode_users(pa.table(columns))

    def _file_values(self, table: pa.Table, raw: RawColumn, source_name: str) -> pa.Array:
        source, _, is_list = raw.stored
        readers = [self.schema.columns[name] for name in raw.readers]
        is_optional = all(column.group in (Group.CONTEXT, Group.ITEM) for column in readers)
        if is_optional and source not in table.column_names:
            table = table.append_column(source, pa.nulls(len(table)))
        if source not in table.column_names:
            raise ValueError(
                f"{source_name}: column '{source}' is missing; there are "
                f"{', '.join(table.column_names)}"
            )
        try:
            if any(column.kind is Kind.VECTOR for column in readers):
                return plain_vectors(table[source])
            return file_values(table[source], self.types[source], is_list=is_list)
        except ValueError as error:
            raise ValueError(f"{source_name}: column '{source}' {error}, as in training") from error

    def _table(
        self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, RawColumn], row_name: str
    ) -> pa.Table:
        return to_table(rows, [raw.stored for raw in columns.values()], self.types, row_name)

    def _encode_users(self, table: pa.Table) -> EncodedInputs:
        table = with_derived(table, self.schema, "user")
        if (found := find_misaligned_row(table, self.schema)) is not None:
            raise ValueError(f"user {found.row}: {found}")
        return self._encode_columns(user_columns(self.schema), table, "user")

    def _encode_candidates(self, table: pa.Table) -> EncodedInputs:
        table = with_derived(table, self.schema, "candidate")
        encoded = self._encode_columns(candidate_columns(self.schema), table, "candidate")
        if new_item_input(self.schema, self.new_items) == NEW_ITEM_OF_CANDIDATE:
            items = self._items
            is_new_R = items.is_new_by_rule(table, encoded[items.item], "candidate")
            encoded[NEW_ITEM_OF_CANDIDATE] = is_new_R
        return encoded

    def _encode_columns(self, columns: list[str], table: pa.Table, row_name: str) -> EncodedInputs:
        table = drop_padding(table, self.schema)
        encoded: EncodedInputs = {}
        for name in columns:
            encoded |= self._encode_column(name, table, row_name)
        return encoded

    def _encode_column(self, name: str, table: pa.Table, row_name: str) -> EncodedInputs:
        column, source = self.schema.columns[name], self.schema.file_column(name)
        if column.group in (Group.NEW_USER, Group.NEW_ITEM):
            return {name: binary(table[source], file=row_name, name=source)}
        if column.kind is Kind.NUMERIC:
            values = numeric_values(table[source], column.transform, file=row_name, name=source)
            return {name: self.encoders.scales[name].apply(values)}
        if column.kind is Kind.VECTOR:
            scale = self.encoders.vectors[name]
            vectors = vector_values(table[source], scale.dim, file=row_name, name=source)
            return {name: scale.apply(vectors)}
        limits = HistoryLimits.served(self.schema, len(table))
        if column.kind is Kind.WEIGHTS:
            weighed = list_of_weights(name, self.schema)
            shares, shown = list_weights(table, limits, weighed, row_name)
            return {
                name: _padded(JaggedArray(shares, shown.lengths), _width(column, shown.lengths))
            }
        ids, lengths = limits.shown_ids(table, name, row_name)
        rows = self.encoders.tables[self.schema.table_of(name)].encode(ids)
        if column.kind is Kind.CATEGORICAL:
            return {name: rows}
        padded = {name: _padded(JaggedArray(rows, lengths), _width(column, lengths))}
        if column.action_of is not None:  # actions are as long as their items
            return padded
        return padded | {length_input(name): lengths}

    def _check_names(self, requests: Sequence[Request]) -> None:
        """Raises ValueError for a column that the model does not have."""
        of_user = {*self._raw.user, self.schema.file_column(self.schema.group_key)}
        of_candidate = {*self._raw.candidate}
        for request in requests:
            _check_known("user", request.user, of_user)
            for candidate in request.candidates:
                _check_known("candidate", candidate, of_candidate)


def _check_known(row_name: str, row: Mapping[str, Any], known: set[str]) -> None:
    if unknown := row.keys() - known:
        raise ValueError(
            f"{row_name}: column '{min(unknown)}' is none of this model's; it knows "
            f"{', '.join(sorted(known))}"
        )


def _width(column: Column, lengths_R: Ints) -> int:
    """Width of a padded list: fixed for behaviours, else the longest list of the request."""
    if column.group is Group.BEHAVIOUR:
        return column.max_length
    return max(int(lengths_R.max(initial=0)), 1)


def _padded(rows: JaggedArray, width: int) -> npt.NDArray[Any]:
    """Pads lists with zeros behind their lengths, [R, width]."""
    padded = np.zeros((len(rows.lengths), width), dtype=rows.values.dtype)
    padded[np.arange(width) < rows.lengths[:, None]] = rows.values
    return padded

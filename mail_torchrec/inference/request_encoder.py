"""Encoding of raw requests as the inputs of an exported model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.history import HistoryLimits, find_misaligned_row
from mail_torchrec.data.numeric import numeric_values
from mail_torchrec.data.padding import drop_padding
from mail_torchrec.data.parquet.arrow import Ints, binary
from mail_torchrec.data.parquet.jagged import JaggedArray
from mail_torchrec.data.schema.schema import Column, Group, Kind, Schema
from mail_torchrec.inference.requests import (
    USER_OF_CANDIDATE,
    Request,
    candidate_columns,
    length_input,
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
    """

    schema: Schema
    encoders: Encoders
    types: Mapping[str, ValueType]

    def __call__(self, requests: Sequence[Request]) -> EncodedInputs:
        """Encodes several requests together, the candidates of one request after another.

        Raises:
            ValueError: a value that cannot be scored; the message names column and value.
        """
        self._check_names(requests)
        users = [request.user for request in requests]
        candidates = [candidate for request in requests for candidate in request.candidates]
        counts = [len(request.candidates) for request in requests]
        return (
            self._encode_users(self._table(users, user_columns(self.schema), "user"))
            | self._encode_candidates(
                self._table(candidates, candidate_columns(self.schema), "candidate")
            )
            | {USER_OF_CANDIDATE: np.repeat(np.arange(len(requests)), counts)}
        )

    def users(self, table: pa.Table, source_name: str) -> EncodedInputs:
        """Encodes the users' inputs of a table with the files' columns, one user a row.

        Args:
            table: context columns may be missing: they count as null.
            source_name: name of the table in error messages.

        Raises:
            ValueError: a column is missing, or a value cannot be scored.
        """
        columns = {
            self.schema.file_column(name): self._file_values(table, name, source_name)
            for name in user_columns(self.schema)
        }
        return self._encode_users(pa.table(columns))

    def _file_values(self, table: pa.Table, name: str, source_name: str) -> pa.Array:
        column, source = self.schema.columns[name], self.schema.file_column(name)
        is_list = column.kind is Kind.LIST
        if column.group is Group.CONTEXT and source not in table.column_names:
            table = table.append_column(source, pa.nulls(len(table)))
        if source not in table.column_names:
            raise ValueError(
                f"{source_name}: column '{source}' is missing; there are "
                f"{', '.join(table.column_names)}"
            )
        try:
            return file_values(table[source], self.types[source], is_list=is_list)
        except ValueError as error:
            raise ValueError(f"{source_name}: column '{source}' {error}, as in training") from error

    def _table(
        self, rows: Sequence[Mapping[str, Any]], columns: list[str], row_name: str
    ) -> pa.Table:
        return to_table(rows, columns, self.schema, self.types, row_name)

    def _encode_users(self, table: pa.Table) -> EncodedInputs:
        if (found := find_misaligned_row(table, self.schema)) is not None:
            raise ValueError(f"user {found.row}: {found}")
        return self._encode_columns(user_columns(self.schema), table, "user")

    def _encode_candidates(self, table: pa.Table) -> EncodedInputs:
        return self._encode_columns(candidate_columns(self.schema), table, "candidate")

    def _encode_columns(self, columns: list[str], table: pa.Table, row_name: str) -> EncodedInputs:
        table = drop_padding(table, self.schema)
        encoded: EncodedInputs = {}
        for name in columns:
            encoded |= self._encode_column(name, table, row_name)
        return encoded

    def _encode_column(self, name: str, table: pa.Table, row_name: str) -> EncodedInputs:
        column, source = self.schema.columns[name], self.schema.file_column(name)
        if column.group is Group.NEW_USER:
            return {name: binary(table[source], file=row_name, name=source)}
        if column.kind is Kind.NUMERIC:
            values = numeric_values(table[source], column.transform, file=row_name, name=source)
            return {name: self.encoders.scales[name].apply(values)}
        limits = HistoryLimits.served(self.schema, len(table))
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
        schema = self.schema
        of_user = {schema.file_column(name) for name in (*user_columns(schema), schema.group_key)}
        of_candidate = {schema.file_column(name) for name in candidate_columns(schema)}
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


def _padded(rows: JaggedArray, width: int) -> Ints:
    """Pads lists with zeros behind their lengths, [R, width]."""
    padded = np.zeros((len(rows.lengths), width), dtype=np.int64)
    padded[np.arange(width) < rows.lengths[:, None]] = rows.values
    return padded

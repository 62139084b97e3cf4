"""Checks the values of a table that training and evaluations refuse."""

from collections.abc import Mapping

import pyarrow as pa

from mail_torchrec.data.content.vector_values import vector_values
from mail_torchrec.data.history import HistoryLimits, column_ids, find_misaligned_row
from mail_torchrec.data.numeric import numeric_values
from mail_torchrec.data.parquet.arrow import binary
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.data.task_labels import task_labels
from mail_torchrec.data.weights.list_weights import list_weights
from mail_torchrec.data.weights.row_weights import row_weights


def check_values(
    table: pa.Table, schema: Schema, vector_dims: Mapping[str, int] | None, where: str
) -> None:
    """Checks all columns of a table.

    Args:
        table: rows of one row group with the files' columns, in plain types.
        schema: columns.
        vector_dims: number of elements of every vector column in the training rows; None for these
            themselves.
        where: file and row group.

    Raises:
        ValueError: a bad value; the message names column, row, value and remedy.
    """
    if (wrong := find_misaligned_row(table, schema)) is not None:
        raise ValueError(f"{where}, row {wrong.row}: {wrong}; repair or drop it")
    check_numbers(table, schema, where)
    limits = HistoryLimits.served(schema, len(table))
    for name in schema.list_weights:
        list_weights(table, limits, name, where)
    for name in schema.lists:
        if name in schema.bucketed:
            column_ids(table, schema, name, where)
    for name in schema.vectors():
        column = schema.file_column(name)
        length = schema.columns[name].length if vector_dims is None else vector_dims[name]
        vector_values(table[column], length, file=where, name=column, rows="of its row group")


def check_numbers(table: pa.Table, schema: Schema, where: str) -> None:
    """Checks the columns of :func:`number_columns` alone; see :func:`check_values`."""
    row_weights(table, schema, where)
    task_labels(table, schema, where)
    for name in flag_columns(schema):
        column = schema.file_column(name)
        binary(table[column], file=where, name=column)
    for name in schema.numeric():
        column, transform = schema.file_column(name), schema.columns[name].transform
        numeric_values(table[column], transform, file=where, name=column)
    for name in _bucketed_scalars(schema):
        column_ids(table, schema, name, where)


def flag_columns(schema: Schema) -> list[str]:
    """Returns the columns of 0 and 1: label, conversion, flags of new users and items."""
    return schema.names(Group.LABEL, Group.CONVERSION, Group.NEW_USER, Group.NEW_ITEM)


def number_columns(schema: Schema) -> list[str]:
    """Returns the columns with one number or flag a row, by their names in the schema."""
    numbers = schema.names(Group.WEIGHT, Group.TASK_LABEL)
    return [*flag_columns(schema), *numbers, *schema.numeric(), *_bucketed_scalars(schema)]


def _bucketed_scalars(schema: Schema) -> list[str]:
    return [name for name in schema.scalars if name in schema.bucketed]

"""Padding of lists of one length: its entries are no ids, and are dropped where lists are read.

Files, requests and users' files pass here, so a padded history is as short as it truly is: a user
without behaviours is new, and no padding is the newest item. Shapes: ``R`` rows, ``V`` values of
all rows end to end.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.column_types import ColumnType
from mail_torchrec.data.parquet.arrow import Bools, Ints, list_lengths, one_chunk
from mail_torchrec.data.parquet.logical_types import LogicalType
from mail_torchrec.data.schema.schema import Group, Schema

_PYTHON_TYPES = {LogicalType.INTEGER: int, LogicalType.STRING: str, LogicalType.NUMBER: int}


def check_padding(schema: Schema, types: Mapping[str, ColumnType]) -> None:
    """Checks that the padding, and the position, of each column is a value of the column's type.

    Raises:
        ValueError: an integer for strings, or the other way round.
    """
    for name, key in [
        *((name, "padding") for name in schema.lists),
        *((name, "position_value") for name in schema.names(Group.POSITION) if name in types),
    ]:
        padding, found = getattr(schema.columns[name], key), types[name]
        expected = _PYTHON_TYPES.get(found.kind)
        if padding is not None and expected is not None and not isinstance(padding, expected):
            raise ValueError(
                f"schema.columns.{name}.{key}: should be of type {found.kind}, as the values in "
                f"{found.file}, received {padding!r}"
            )


def drop_padding(table: pa.Table, schema: Schema) -> pa.Table:
    """Drops the padding of every list column that has one, and the actions and weights of it.

    Lists that are not aligned with these are left as they are, for the check that names
    their row.

    Args:
        table: R rows with the files' columns, in plain types.
        schema: padding of the columns.
    """
    for name in schema.lists:
        padding = schema.columns[name].padding
        weights = [schema.list_weights[name]] if name in schema.list_weights else []
        aligned = (name, *schema.actions_of(name), *weights)
        columns = [schema.file_column(column) for column in aligned]
        columns += [raw for column in aligned for raw in _raw_lists(schema, column)]
        columns = [column for column in columns if column in table.column_names]
        if padding is None or schema.file_column(name) not in table.column_names:
            continue
        lengths_R, *of_actions = (list_lengths(table[column]) for column in columns)
        values = pc.list_flatten(table[columns[0]])
        if values.null_count == len(values):  # perhaps of another type than the padding
            continue
        is_padding = pc.fill_null(pc.equal(values, pa.scalar(padding, values.type)), False)
        kept_V = ~is_padding.to_numpy().astype(np.bool_)
        if kept_V.all() or not all(np.array_equal(lengths_R, other_R) for other_R in of_actions):
            continue
        for column in columns:
            index = table.column_names.index(column)
            table = table.set_column(index, column, _filtered(table[column], lengths_R, kept_V))
    return table


def _raw_lists(schema: Schema, name: str) -> list[str]:
    """Returns the lists that a derived column is computed from."""
    return [one.column for one in schema.derived.get(name, []) if one.is_list]


def _filtered(lists: pa.ChunkedArray, lengths_R: Ints, kept_V: Bools) -> pa.LargeListArray:
    """Keeps some of the values of all lists."""
    rows_V = np.repeat(np.arange(len(lengths_R)), lengths_R)
    offsets = np.cumsum(np.bincount(rows_V[kept_V], minlength=len(lengths_R)))
    values = one_chunk(pc.list_flatten(lists).filter(pa.array(kept_V)))
    return pa.LargeListArray.from_arrays(pa.array(np.insert(offsets, 0, 0), pa.int64()), values)

"""Simulated new items: withholds the ids of a share of the items.

Shape: ``N`` ids.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.items.candidate_item import item_column
from mail_torchrec.data.items.settings import HiddenItemSettings
from mail_torchrec.data.parquet.arrow import Bools
from mail_torchrec.data.schema.schema import Schema


def hidden_items(ids: pa.Array, settings: HiddenItemSettings) -> Bools:
    """Selects the ids of hidden items, [N].

    An item is hidden where the salted 64-bit hash of its id is below ``share * 2^64``, the same in
    every column, file and run. A null is no item.

    Args:
        ids: [N], int64, large_string or boolean.
        settings: of rows of one kind, trained on or evaluated.
    """
    is_item_N: Bools = pc.is_valid(ids).to_numpy(zero_copy_only=False)
    threshold = int(settings.share * 2**64)
    if threshold >= 2**64:
        return is_item_N
    return is_item_N & (hash64(ids, settings.salt) < np.uint64(threshold))


def without_hidden(
    ids: pa.Array, name: str, schema: Schema, settings: HiddenItemSettings | None
) -> pa.Array:
    """Leaves out the ids of hidden items, which so stay out of vocabularies.

    Args:
        ids: [N], of one column.
        name: of the column.
        schema: columns and tables.
        settings: of the rows that are trained on; None, or its oracle, hides no id.
    """
    if settings is None or not settings.withholds:
        return ids
    if name not in withheld_columns(schema, item_column(schema, None, settings)):
        return ids
    return ids.filter(pa.array(~hidden_items(ids, settings)))


def crosses_of(schema: Schema, item: str) -> frozenset[str]:
    """Returns the columns that cross the item's id with others, and so tell it.

    Args:
        schema: columns and tables.
        item: column of the candidate item.
    """
    column = schema.file_column(item)
    return frozenset(
        name
        for name in schema.derived
        if schema.columns[name].cross is not None and column in schema.raw_columns(name)
    )


def withheld_columns(schema: Schema, item: str) -> frozenset[str]:
    """Returns the columns whose ids are those of items: all that would tell a hidden one.

    They share the table of the candidate item (histories), or are read from its column.

    Args:
        schema: columns and tables.
        item: column of the candidate item.
    """
    table, column = schema.table_of(item), schema.file_column(item)
    return frozenset(
        name
        for name in schema.id_columns
        if schema.table_of(name) == table or schema.file_column(name) == column
    )

"""Rows of one user that hold the same of that user, as an impression log repeats them: what is done once for all of them."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.schema import Group, Kind, Schema
from mail_torchrec.data.values import Bools, Ints, Ragged, list_lengths, one_chunk

USER_SIDE = (Group.ATTRIBUTE, Group.BEHAVIOUR, Group.NEW_USER)
"""Columns that say something of the user alone."""


def alike_rows(table: pa.Table, schema: Schema, users_R: Ints) -> Ints:
    """The first row [R] that has the same user and equal values in all columns of the user's side.

    Values are compared, not hashes of them. A user whose history grows between two impressions has two such rows.

    Args:
        table: rows as in the files.
        schema: their columns.
        users_R: whose row it is; equal numbers are one user.
    """
    order_R = np.argsort(users_R, kind="stable")
    same_P = np.flatnonzero(users_R[order_R[1:]] == users_R[order_R[:-1]])
    pairs = order_R[same_P], order_R[same_P + 1]
    for column in _columns(table, schema):
        if not len(same_P):
            break
        equal_P = (_equal_lists if _holds_lists(column.type) else _equal)(column, *pairs)
        same_P, pairs = same_P[equal_P], (pairs[0][equal_P], pairs[1][equal_P])
    begins_R = np.ones(len(users_R), dtype=np.bool_)
    begins_R[same_P + 1] = False  # by order_R: equal to the row before
    first_R = order_R[np.flatnonzero(begins_R)][np.cumsum(begins_R) - 1]
    alike_R: Ints = np.empty(len(users_R), dtype=np.int64)
    alike_R[order_R] = first_R
    return alike_R


def _columns(table: pa.Table, schema: Schema) -> Iterator[pa.Array]:
    """The columns of the user's side, lists last: they are the dearest to compare."""
    names = sorted(schema.names(*USER_SIDE), key=lambda name: schema.columns[name].kind is Kind.LIST)
    for file_column in dict.fromkeys(map(schema.file_column, names)):
        yield one_chunk(table[file_column])


def _holds_lists(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _equal(column: pa.Array, left: Ints, right: Ints) -> Bools:
    """Whether values are equal; null is equal to null, and NaN to nothing."""
    if pa.types.is_integer(column.type):
        numbers, missing = (pc.fill_null(column, 0) if column.null_count else column).to_numpy(), pc.is_null(column).to_numpy(False)
        alike: Bools = (numbers[left] == numbers[right]) & (missing[left] == missing[right])
        return alike
    plain = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    one, other = plain.take(pa.array(left)), plain.take(pa.array(right))
    both_null = pc.and_(pc.is_null(one), pc.is_null(other))
    equal: Bools = pc.or_kleene(pc.fill_null(pc.equal(one, other), False), both_null).to_numpy(zero_copy_only=False)
    return equal


def _equal_lists(column: pa.Array, left: Ints, right: Ints) -> Bools:
    """Whether lists are equal; a null list is an empty one."""
    rows = Ragged(np.zeros(0, dtype=np.int64), list_lengths(pa.chunked_array([column])))
    equal: Bools = rows.lengths[left] == rows.lengths[right]
    alike = _equal(pc.list_flatten(column), *(rows.take(side[equal]).positions for side in (left, right)))
    lengths = rows.lengths[left[equal]]
    different = np.concatenate([[0], np.cumsum(~alike)])
    ends = np.cumsum(lengths)
    equal[equal] = different[ends] == different[ends - lengths]
    return equal

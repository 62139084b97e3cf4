"""Deduplication of the user-side features of a batch (RecD, Zhao et al. 2023, arXiv:2211.05239).

An impression log repeats a user's attributes and history in row after row. Rows that agree in all
user-side features share one lookup and one pass of the towers; ``inverse_indices`` leads back from
the rows to them, as in TorchRec's KeyedJaggedTensor.

Shapes: ``R`` rows, ``U`` deduplicated users (rows with distinct user-side features), ``P`` pairs of
neighbouring rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mail_torchrec.data.parquet.arrow import Bools, Ints
from mail_torchrec.data.parquet.jagged import JaggedArray
from mail_torchrec.data.schema.schema import Group

USER_SIDE_GROUPS = (Group.ATTRIBUTE, Group.BEHAVIOUR, Group.NEW_USER)
"""Groups of the columns that describe the user alone."""


class RowDedup(NamedTuple):
    """Deduplicated users of some rows."""

    first_rows_U: Ints
    """First row of each user, in rising order."""
    inverse_indices_R: Ints
    """Index of each row's user in ``first_rows_U``."""


def dedup_keys(
    users_R: Ints, arrays: Sequence[npt.NDArray[Any]], lists: Sequence[JaggedArray]
) -> Ints:
    """Numbers the rows so that rows of one user with equal user-side features have equal numbers.

    Values are compared, not their hashes. A user's rows are compared with the user's next row in
    the order of the rows, be there rows of other users in between; where a history has grown, the
    rows from there on have a new number.

    Args:
        users_R: user of each row.
        arrays: encoded values, [R] or [R, columns].
        lists: list columns of R rows.

    Returns:
        Keys [R].
    """
    order_R = np.argsort(users_R, kind="stable")
    equal_P = np.flatnonzero(users_R[order_R[1:]] == users_R[order_R[:-1]])
    for array in arrays:
        is_equal = array[order_R[equal_P]] == array[order_R[equal_P + 1]]
        equal_P = equal_P[is_equal if is_equal.ndim == 1 else is_equal.all(axis=1)]
    for jagged in lists:
        rows, next_rows = jagged.take(order_R[equal_P]), jagged.take(order_R[equal_P + 1])
        equal_P = equal_P[_equal_lists(rows, next_rows)]
    is_first_R = np.ones(len(users_R), dtype=np.int64)
    is_first_R[equal_P + 1] = 0  # in the order of order_R: equal to the row before
    keys_R: Ints = np.empty_like(is_first_R)
    keys_R[order_R] = np.cumsum(is_first_R)
    return keys_R


def deduplicate(keys_R: Ints) -> RowDedup:
    """Finds the first row of each key of :func:`dedup_keys`, and each row's index among them.

    Keys ``[7, 4, 7, 5]`` give first rows ``[0, 1, 3]`` and inverse indices ``[0, 1, 0, 2]``.
    """
    rows_R = np.arange(len(keys_R))
    keys_R = keys_R - keys_R.min(initial=0)
    first_row_of_key = np.empty(keys_R.max(initial=-1) + 1, dtype=np.int64)
    # Of entries that are written twice the last one stays, so the rows are written in reverse.
    first_row_of_key[keys_R[::-1]] = rows_R[::-1]
    first_rows_R = first_row_of_key[keys_R]
    is_first_R = first_rows_R == rows_R
    return RowDedup(np.flatnonzero(is_first_R), (np.cumsum(is_first_R) - 1)[first_rows_R])


def _equal_lists(one: JaggedArray, other: JaggedArray) -> Bools:
    """Compares two jagged arrays row by row; rows that are the same slice need no comparison."""
    is_equal_R: Bools = one.lengths == other.lengths
    unknown = np.flatnonzero(is_equal_R & (one.starts != other.starts) & (one.lengths > 0))
    lengths = one.lengths[unknown]
    differs = one.take(unknown).values != other.take(unknown).values
    before, ends = np.concatenate([[0], np.cumsum(differs)]), np.cumsum(lengths)
    is_equal_R[unknown] = before[ends] == before[ends - lengths]
    return is_equal_R

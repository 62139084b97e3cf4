"""Rows that hold the same of one user, as an impression log repeats them: what is done once for all of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mail_torchrec.data.parquet.arrow import Bools, Ints, JaggedArray
from mail_torchrec.data.schema.schema import Group

USER_SIDE = (Group.ATTRIBUTE, Group.BEHAVIOUR, Group.NEW_USER)
"""Columns that say something of the user alone."""


def alike_rows(
    users_R: Ints, arrays: Sequence[npt.NDArray[Any]], lists: Sequence[JaggedArray]
) -> Ints:
    """A number for each row [R], equal where one user's rows have equal values in all of these.

    Values are compared, not hashes of them. Of one user those rows are found that come one after
    the other, be it with rows of others between them; one whose history grows has a new number from
    there on.

    Args:
        users_R: whose row it is.
        arrays: encoded values, [R] or [R, columns].
        lists: of each row.
    """
    order_R = np.argsort(users_R, kind="stable")
    same_P = np.flatnonzero(users_R[order_R[1:]] == users_R[order_R[:-1]])
    for array in arrays:
        equal = array[order_R[same_P]] == array[order_R[same_P + 1]]
        same_P = same_P[equal if equal.ndim == 1 else equal.all(axis=1)]
    for ragged in lists:
        same_P = same_P[
            _equal_lists(ragged.take(order_R[same_P]), ragged.take(order_R[same_P + 1]))
        ]
    begins_R = np.ones(len(users_R), dtype=np.int64)
    begins_R[same_P + 1] = 0  # by order_R: like the row before
    alike_R: Ints = np.empty_like(begins_R)
    alike_R[order_R] = np.cumsum(begins_R)
    return alike_R


def _equal_lists(one: JaggedArray, other: JaggedArray) -> Bools:
    """Row by row; lists that are one slice of one array need no look at it."""
    equal: Bools = one.lengths == other.lengths
    unknown = np.flatnonzero(equal & (one.starts != other.starts) & (one.lengths > 0))
    lengths = one.lengths[unknown]
    differs = one.take(unknown).values != other.take(unknown).values
    before, ends = np.concatenate([[0], np.cumsum(differs)]), np.cumsum(lengths)
    equal[unknown] = before[ends] == before[ends - lengths]
    return equal

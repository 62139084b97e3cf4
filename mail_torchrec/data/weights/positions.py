"""Constant that stands for the position of an item outside of training, and how it is trained.

Shapes: ``R`` rows, ``C`` columns of one id.
"""

import numpy as np
import pyarrow as pa

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.ids.hashing import mix64
from mail_torchrec.data.ids.policy import MISSING_ROW
from mail_torchrec.data.parquet.arrow import Bools, Ints
from mail_torchrec.data.schema.schema import Group, Schema

_DROPOUT = 0.1
"""Share of hidden positions where the constant is the row of nulls (Zhao et al., RecSys 2019)."""


def position_rows(schema: Schema, encoders: Encoders) -> dict[str, int]:
    """Returns the table row that each position column looks up outside of training.

    Args:
        schema: columns.
        encoders: fitted on the training data.

    Raises:
        ValueError: a ``position_value`` that the training data has not.
    """
    return {name: _row(schema, encoders, name) for name in schema.names(Group.POSITION)}


def _row(schema: Schema, encoders: Encoders, name: str) -> int:
    value = schema.columns[name].position_value
    if value is None:
        return MISSING_ROW
    ids = pa.array([value], pa.int64() if isinstance(value, int) else pa.large_string())
    encoder, reason = encoders.tables[schema.table_of(name)], ""
    try:
        rows = encoder.encode(ids)
    except ValueError as error:
        rows, reason = None, f" ({error})"
    if rows is None or encoder.is_unknown(rows)[0]:
        raise ValueError(
            f"schema.columns.{name}.position_value: should be a value of column "
            f"'{schema.file_column(name)}' in the training data, received {value!r}{reason}; "
            "correct it, or leave it out for null"
        )
    return int(rows[0])


def hide_positions(schema: Schema, scalars_CR: Ints, users_R: Ints) -> None:
    """Replaces the positions of some training rows by null, which stands for them elsewhere.

    A hash of the row's user and ids chooses them: the same rows in every epoch, on any ranks.

    Args:
        schema: columns.
        scalars_CR: table rows of the columns of one id; changed in place.
        users_R: hash of each row's user.
    """
    for name in schema.names(Group.POSITION):
        column = schema.columns[name]
        share = column.position_dropout
        if share is None:
            share = _DROPOUT if column.position_value is None else 0.0
        if share:
            is_hidden_R = _chosen(scalars_CR, users_R, share)
            scalars_CR[schema.scalars.index(name), is_hidden_R] = MISSING_ROW


def _chosen(scalars_CR: Ints, users_R: Ints, share: float) -> Bools:
    words_R = users_R.view(np.uint64)
    for ids_R in scalars_CR:
        words_R = mix64(words_R ^ ids_R.view(np.uint64))
    chosen_R: Bools = mix64(words_R) < np.uint64(int(share * 2**64))
    return chosen_R

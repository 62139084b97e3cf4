"""Constant that stands for the position of an item outside of training."""

import pyarrow as pa

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.ids.policy import MISSING_ROW, UNKNOWN_ROW
from mail_torchrec.data.schema.schema import Group, Schema


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
    reason = "which it has not"
    try:
        row = int(encoders.tables[schema.table_of(name)].encode(ids)[0])
    except ValueError as error:
        row, reason = UNKNOWN_ROW, str(error)
    if row == UNKNOWN_ROW:
        raise ValueError(
            f"schema.columns.{name}.position_value: should be a value of column "
            f"'{schema.file_column(name)}' in the training data, received {value!r}: {reason}; "
            "correct it, or leave it out for null"
        )
    return row

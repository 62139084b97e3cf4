"""Weights of rows, and what any weight should be: a finite number of 0 or more.

Shapes: ``R`` rows, ``V`` values.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.parquet.arrow import Floats, Ints, one_chunk
from mail_torchrec.data.schema.schema import Schema


def row_weights(table: pa.Table, schema: Schema, file: str) -> Floats:
    """Returns the weights of rows [R]; 1 each where the schema has no column of them.

    Args:
        table: R rows with the files' columns, in plain types.
        schema: columns.
        file: for messages.

    Raises:
        ValueError: a weight that is negative, infinite, NaN or null, or above the range of float32;
            with its row.
    """
    if schema.weight is None:
        return np.ones(len(table), np.float32)
    name = schema.file_column(schema.weight)
    values = one_chunk(table[name])
    check_weights(values, np.arange(len(values)), f"{file}: column '{name}'")
    weights_R: Floats = values.to_numpy(zero_copy_only=False).astype(np.float32)
    return weights_R


def check_weights(values: pa.Array, rows_V: Ints, where: str) -> None:
    """Checks weights.

    Args:
        values: float64, [V].
        rows_V: row of each.
        where: file and column, for messages.

    Raises:
        ValueError: one of them is no weight; with its row.
    """
    largest = float(np.finfo(np.float32).max)
    is_weight = pc.and_(pc.greater_equal(values, 0.0), pc.less_equal(values, largest))
    wrong = np.flatnonzero(~pc.fill_null(is_weight, False).to_numpy(zero_copy_only=False))
    if not len(wrong):
        return
    received = values[int(wrong[0])].as_py()
    raise ValueError(
        f"{where} should hold weights, finite numbers of 0 or more, received "
        f"{'null' if received is None else f'{received:g}'} in row {rows_V[wrong[0]]} of its row "
        f"group ({len(wrong)} such values); correct them, or write 0 for what should not count"
    )

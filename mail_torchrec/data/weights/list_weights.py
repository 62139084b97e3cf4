"""Weights of the entries of pooled lists, as shares of their row's sum.

Shapes: ``R`` rows, ``V`` shown entries of all rows end to end.
"""

import numpy as np
import pyarrow as pa

from mail_torchrec.data.history import HistoryLimits
from mail_torchrec.data.parquet.arrow import Floats, Ints, list_lengths, one_chunk
from mail_torchrec.data.parquet.jagged import JaggedArray
from mail_torchrec.data.weights.row_weights import check_weights


def list_weights(
    table: pa.Table, limits: HistoryLimits, name: str, file: str
) -> tuple[Floats, JaggedArray]:
    """Returns the weight of each shown entry of a list over the sum of its row's.

    So the weighted mean of a row's vectors is the sum of each times its share. Where all weights of
    a row are 0 so are the shares, and the mean is a vector of zeros.

    Args:
        table: R rows with the files' columns, in plain types.
        limits: of the rows.
        name: column of the list.
        file: for messages.

    Returns:
        Shares [V], and the entries that each row shows, without values.

    Raises:
        ValueError: weights that are not as many as the entries, or one that is negative, infinite,
            NaN or null; with its row.
    """
    schema = limits.schema
    column = schema.file_column(schema.list_weights[name])
    lists, shown = one_chunk(table[column]), limits.shown(table, name)
    lengths_R = list_lengths(table[column])
    _check_aligned(lengths_R, table, schema.file_column(name), f"{file}: column '{column}'")
    values = lists.flatten()
    check_weights(values, np.repeat(np.arange(len(table)), lengths_R), f"{file}: column '{column}'")
    weights_V = values.to_numpy(zero_copy_only=False)[shown.positions]
    rows_V = np.repeat(np.arange(len(table)), shown.lengths)
    largest_R = np.zeros(len(table))
    np.maximum.at(largest_R, rows_V, weights_V)
    weights_V = weights_V / _or_one(largest_R)[rows_V]  # so that no sum is infinite
    sums_R = np.bincount(rows_V, weights_V, len(table))
    shares_V: Floats = (weights_V / _or_one(sums_R)[rows_V]).astype(np.float32)
    return shares_V, shown


def _or_one(values_R: np.ndarray) -> np.ndarray:
    """Replaces 0 by 1."""
    return np.where(values_R == 0, 1, values_R)


def _check_aligned(lengths_R: Ints, table: pa.Table, items: str, where: str) -> None:
    num_items_R = list_lengths(table[items])
    if len(wrong := np.flatnonzero(num_items_R != lengths_R)):
        row = int(wrong[0])
        raise ValueError(
            f"{where} should be as long as '{items}' in every row, received {lengths_R[row]} "
            f"weights on {num_items_R[row]} entries in row {row} of its row group; align the two "
            "lists"
        )

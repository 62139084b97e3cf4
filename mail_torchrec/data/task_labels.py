"""Labels of further tasks: 0 or 1, or numbers of 0 or more; a null says that nobody knows.

Shape: ``R`` rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.parquet.arrow import Floats
from mail_torchrec.data.schema.schema import Group, Kind, Schema


def task_labels(table: pa.Table, schema: Schema, file: str) -> dict[str, Floats]:
    """Returns the labels [R] of each column of group ``task_label``; NaN where they are null.

    Args:
        table: R rows with the files' columns, in plain types.
        schema: columns.
        file: for messages.

    Raises:
        ValueError: a label that is none; the message names column, row, value and remedy.
    """
    return {name: _labels(table, schema, name, file) for name in schema.names(Group.TASK_LABEL)}


def _labels(table: pa.Table, schema: Schema, name: str, file: str) -> Floats:
    column, is_number = schema.file_column(name), schema.columns[name].kind is Kind.NUMERIC
    values_R = table[column].cast(pa.float64(), safe=False).to_numpy()
    is_null_R = pc.is_null(table[column]).to_numpy()
    if is_number:
        expected = "null or a finite number of 0 or more"
        is_label_R = (values_R >= 0) & (values_R <= float(np.finfo(np.float32).max))
    else:
        expected = "0, 1 or null"
        is_label_R = np.isin(values_R, (0.0, 1.0))
    is_wrong_R = ~is_label_R & ~is_null_R
    if is_wrong_R.any():
        row = int(np.argmax(is_wrong_R))
        raise ValueError(
            f"{file}: column '{column}' (a task's label) should be {expected}, received "
            f"{values_R[row]:g} in row {row} of its row group ({int(is_wrong_R.sum())} such "
            "values); correct them, or write null where the label is unknown"
        )
    labels_R: Floats = np.where(is_null_R, np.nan, values_R).astype(np.float32)
    return labels_R

"""Checks all weights of the training rows before training, and that some row counts."""

import pyarrow as pa

from mail_torchrec.data.history import HistoryLimits
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.weights.list_weights import list_weights
from mail_torchrec.data.weights.row_weights import row_weights


class WeightSum:
    """Sums the weights of the rows while the vocabularies are fitted.

    Args:
        schema: columns.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema, self._sum = schema, 0.0

    def add(self, table: pa.Table, limits: HistoryLimits, file: str) -> None:
        """Adds the rows of one row group.

        Raises:
            ValueError: a weight of a row or of a list's entry that is none; with its row.
        """
        if self._schema.weight is not None:
            self._sum += float(row_weights(table, self._schema, file).sum())
        for name in self._schema.list_weights:
            list_weights(table, limits, name, file)

    def merge(self, other: "WeightSum") -> None:
        """Adds the sum of rows that follow."""
        self._sum += other._sum

    def check(self, path: str) -> None:
        """Checks that rows have weight, where there is a column of it.

        Args:
            path: of the rows, for messages.

        Raises:
            ValueError: all weights are 0.
        """
        if self._schema.weight is not None and not self._sum:
            raise ValueError(
                f"'{path}': column '{self._schema.file_column(self._schema.weight)}' should weigh "
                "rows, and all its weights are 0, so nothing would be learnt; correct it, or drop "
                f"schema.columns.{self._schema.weight}"
            )

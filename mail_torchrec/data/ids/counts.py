"""Counts of the ids that the training data holds of one table."""

import pyarrow as pa
import pyarrow.compute as pc


class IdCounts:
    """Counts how often each id occurs, over many chunks of ids.

    Args:
        table: counts to begin with, as :attr:`table`; None begins at 0.
    """

    def __init__(self, table: pa.Table | None = None) -> None:
        self._table = table

    @property
    def table(self) -> pa.Table:
        """Columns ``value`` and ``count``, one row for each distinct id."""
        assert self._table is not None, "no ids were added"
        return self._table

    def add(self, ids: pa.Array) -> None:
        """Adds ids [N], all of one type; nulls are not counted."""
        counted = pc.value_counts(ids.drop_null())
        table = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
        if self._table is None:
            self._table = table
            return
        grouped = pa.concat_tables([self._table, table]).group_by("value")
        self._table = grouped.aggregate([("count", "sum")]).rename_columns(["value", "count"])

"""Counts of the ids that the training data holds of one table."""

import pyarrow as pa
import pyarrow.compute as pc

_FEW = 8
"""Counts of like size that are merged at once."""


class IdCounts:
    """Counts how often each id occurs, over many chunks of ids.

    Counts are merged where some are of like size, so that an id is merged a few times and not with
    every chunk, even where nearly all ids differ.

    Args:
        table: counts to begin with, as :attr:`table`; None begins at 0.
    """

    def __init__(self, table: pa.Table | None = None) -> None:
        self._parts = [] if table is None else [table]

    @property
    def table(self) -> pa.Table:
        """Columns ``value`` and ``count``, one row for each distinct id."""
        assert self._parts, "no ids were added"
        self._parts = [_merged(self._parts)]
        return self._parts[0]

    def add(self, ids: pa.Array) -> None:
        """Adds ids [N], all of one type; nulls are not counted."""
        counted = pc.value_counts(ids.drop_null())
        parts = self._parts
        parts.append(pa.table({"value": counted.field("values"), "count": counted.field("counts")}))
        while len(parts) >= _FEW and len(parts[-_FEW]) <= 2 * len(parts[-1]):
            parts[-_FEW:] = [_merged(parts[-_FEW:])]


def _merged(parts: list[pa.Table]) -> pa.Table:
    """Sums the counts of each id."""
    if len(parts) == 1:
        return parts[0]
    grouped = pa.concat_tables(parts).group_by("value")
    return grouped.aggregate([("count", "sum")]).rename_columns(["value", "count"])

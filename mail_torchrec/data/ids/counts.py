"""Counts of the ids that the training data holds of one table.

Shapes: ``N`` distinct ids.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.ids.count_runs import CountRun, SpilledRuns, part_bounds, sorted_run
from mail_torchrec.data.parquet.arrow import Ints

_FEW = 8
"""Counts of like size that are merged at once."""
_MERGED_BYTES = 2**26
"""Bytes of counts on disk that are merged at a time."""


class IdCounts:
    """Counts how often each id occurs, over many chunks of ids.

    Counts are merged where some are of like size, so that an id is merged a few times and not with
    every chunk, even where nearly all ids differ. What was counted so far can be moved to disk.

    Args:
        table: counts to begin with, as :attr:`table`; None begins at 0.
    """

    def __init__(self, table: pa.Table | None = None) -> None:
        self._parts = [] if table is None else [table]
        self._spilled: SpilledRuns | None = None

    @property
    def table(self) -> pa.Table:
        """Columns ``value`` and ``count``, one row for each distinct id, in no order."""
        if self._spilled is not None:
            self.spill()
            number = max(self._spilled.num_bytes // _MERGED_BYTES, 1)
            runs = self._spilled.runs
            merged = (self._merged_part(runs, *bounds) for bounds in part_bounds(number))
            self._parts, self._spilled = [pa.concat_tables(merged)], None
        assert self._parts, "no ids were added"
        self._parts = [merge_counts(self._parts)]
        return self._parts[0]

    @property
    def num_held_bytes(self) -> int:
        """Bytes of counts in memory."""
        return sum(part.nbytes for part in self._parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of counts in memory and on disk, before they are merged."""
        return self.num_held_bytes + (0 if self._spilled is None else self._spilled.num_bytes)

    def add(self, ids: pa.Array) -> None:
        """Adds ids [N], all of one type; nulls are not counted."""
        counted = pc.value_counts(ids.drop_null())
        parts = self._parts
        parts.append(pa.table({"value": counted.field("values"), "count": counted.field("counts")}))
        while len(parts) >= _FEW and len(parts[-_FEW]) <= 2 * len(parts[-1]):
            parts[-_FEW:] = [merge_counts(parts[-_FEW:])]

    def spill(self) -> None:
        """Moves the counts in memory to a temporary file.

        Raises:
            OSError: the disk is full or fails.
        """
        if not self._parts:
            return
        if self._spilled is None:
            self._spilled = SpilledRuns()
        run = sorted_run(merge_counts(self._parts))
        self._parts = []
        self._spilled.append(run)

    def runs(self) -> list[CountRun]:
        """Returns the counts in the order of their hash parts, an id perhaps several times."""
        spilled = [] if self._spilled is None else self._spilled.runs
        held = [sorted_run(pa.concat_tables(self._parts))] if self._parts else []
        return [*spilled, *held]

    @staticmethod
    def _merged_part(runs: Iterable[CountRun], first: int, stop: int) -> pa.Table:
        return merge_counts([run.part(first, stop) for run in runs])


def merge_counts(parts: list[pa.Table]) -> pa.Table:
    """Sums the counts of each id.

    Args:
        parts: one or more, each with columns ``value`` and ``count`` and without repeated ids.
    """
    if len(parts) == 1:
        return parts[0]
    return sum_counts(pa.concat_tables(parts))


def sum_counts(table: pa.Table) -> pa.Table:
    """Sums the counts of each id.

    Args:
        table: columns ``value`` and ``count``, ids perhaps repeated.
    """
    grouped = table.group_by("value")
    return grouped.aggregate([("count", "sum")]).rename_columns(["value", "count"])


def order_by_frequency(values: pa.Array, counts_N: Ints) -> Ints:
    """Returns the order of ids by frequency, the highest first, ties in the order of their values.

    Strings are ordered by their UTF-8.

    Args:
        values: distinct ids [N].
        counts_N: their counts.
    """
    if not len(values):
        return np.zeros(0, np.int64)
    if pa.types.is_integer(values.type):
        order_N: Ints = np.argsort(values.to_numpy())
    else:
        order_N = pc.sort_indices(values).to_numpy().astype(np.int64)
    # A stable sort of 16-bit integers is a radix sort; the few ids with more occurrences than these
    # can say are sorted once more.
    most = np.iinfo(np.uint16).max
    keys_N = (most - np.minimum(counts_N, most)).astype(np.uint16)
    order_N = order_N[np.argsort(keys_N[order_N], kind="stable")]
    many = order_N[: np.count_nonzero(counts_N >= most)]
    order_N[: len(many)] = many[np.argsort(-counts_N[many], kind="stable")]
    return order_N

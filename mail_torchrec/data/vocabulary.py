"""Raw ids -> table rows.

Row 0 of every table is for ids outside its vocabulary, row 1 for nulls; values begin at row 2.
"""

from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.hashing import hash64
from mail_torchrec.data.values import Ints

UNKNOWN_ROW = 0
MISSING_ROW = 1
FIRST_ROW = 2
# An integer vocabulary whose values span fewer numbers than this is looked up in a plain array instead of by bisection.
_MAX_SPAN = 1 << 24


class IdEncoder(Protocol):
    """How the ids of one table become rows."""

    @property
    def num_rows(self) -> int:
        """Rows of the table."""

    def encode(self, ids: pa.Array) -> Ints:
        """Rows of ``ids`` (int64 or large_string, nulls allowed)."""


class Vocabulary:
    """The values seen in training, most frequent first, so that row order is frequency order.

    Args:
        values: distinct values (int64 or large_string).
        counts: how often each was seen, not increasing.
    """

    def __init__(self, values: pa.Array, counts: Ints) -> None:
        assert len(values) == len(counts)
        self.values, self.counts = values, counts
        self._lookup = _IntegerLookup(values.to_numpy()) if pa.types.is_integer(values.type) else None

    @property
    def num_rows(self) -> int:
        """Rows of the table: one a value, and those for unknown and missing ids."""
        return len(self.values) + FIRST_ROW

    def encode(self, ids: pa.Array) -> Ints:
        """Rows of ``ids``; ids that are not in the vocabulary become row 0, nulls row 1.

        Raises:
            ValueError: strings where the vocabulary holds integers, or the other way round.
        """
        if ids.type != self.values.type and len(self.values) and not pa.types.is_null(ids.type):
            raise ValueError(f"ids should be {self.values.type}, as in the training data, received {ids.type}; cast the column in the file")
        if self._lookup is not None:
            rows = self._lookup(pc.fill_null(ids, 0).to_numpy())
        else:
            rows = pc.fill_null(pc.index_in(ids, value_set=self.values), -1).to_numpy().astype(np.int64)
        rows = np.where(rows < 0, UNKNOWN_ROW, rows + FIRST_ROW)
        if ids.null_count:
            rows[pc.is_null(ids).to_numpy(zero_copy_only=False)] = MISSING_ROW
        return rows


class HashedIds:
    """A fixed number of rows that all values share by a hash; nothing to build and nothing unknown.

    Args:
        table: salts the hash, so that two tables do not share their collisions.
        num_rows: rows of the table, those for unknown and missing ids included.
    """

    def __init__(self, table: str, num_rows: int) -> None:
        self._table, self.num_rows = table, num_rows

    def encode(self, ids: pa.Array) -> Ints:
        """Rows of ``ids``: row 1 for nulls, else ``2 + hash mod (rows - 2)``."""
        buckets = max(self.num_rows - FIRST_ROW, 1)
        rows = (hash64(ids, self._table) % np.uint64(buckets)).astype(np.int64) + min(FIRST_ROW, self.num_rows - 1)
        if ids.null_count:
            rows[pc.is_null(ids).to_numpy(zero_copy_only=False)] = MISSING_ROW
        return rows


class _IntegerLookup:
    """Position of an integer in a list of distinct ones, or -1."""

    def __init__(self, values: Ints) -> None:
        self._order = np.argsort(values, kind="stable")
        self._sorted = values[self._order]
        self._table: Ints | None = None
        if len(values) and (span := int(self._sorted[-1]) - int(self._sorted[0]) + 1) <= _MAX_SPAN:
            # One entry more at either end answers everything outside the span.
            self._table = np.full(span + 2, -1, dtype=np.int64)
            self._table[values - self._sorted[0] + 1] = np.arange(len(values))

    def __call__(self, ids: Ints) -> Ints:
        if not len(self._sorted):
            return np.full(len(ids), -1, dtype=np.int64)
        if self._table is not None:
            low, high = self._sorted[0], self._sorted[-1]
            inside = (ids >= low) & (ids <= high)
            return self._table[np.where(inside, ids - low + 1, 0)]
        found = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
        return np.where(self._sorted[found] == ids, self._order[found], -1)


def count_values(previous: pa.Table | None, ids: pa.Array) -> pa.Table:
    """Adds the value counts of ``ids`` to those counted before (a table of ``value`` and ``count``)."""
    counted = pc.value_counts(ids.drop_null())
    table = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
    if previous is None:
        return table
    both = pa.concat_tables([previous, table])
    return both.group_by("value").aggregate([("count", "sum")]).rename_columns(["value", "count"])


def vocabulary_from_counts(counts: pa.Table, *, min_count: int, max_rows: int | None) -> Vocabulary:
    """The values counted at least ``min_count`` times, most frequent first (ties by value), at most ``max_rows`` table rows."""
    kept = counts.filter(pc.field("count") >= min_count).sort_by([("count", "descending"), ("value", "ascending")])
    if max_rows is not None:
        kept = kept.slice(0, max(max_rows - FIRST_ROW, 0))
    return Vocabulary(plain_chunk(kept["value"]), kept["count"].to_numpy().astype(np.int64))


def plain_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column in one chunk, also where it has none."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)

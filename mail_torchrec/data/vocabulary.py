"""Raw ids -> table rows.

Row 0 of every table is for ids outside its vocabulary, row 1 for nulls; values begin at row 2.
"""

from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.hashing import hash64
from mail_torchrec.data.values import Ints, one_chunk

UNKNOWN_ROW = 0
MISSING_ROW = 1
FIRST_ROW = 2
# An integer vocabulary is looked up in a plain array where that takes at most so many entries a value, otherwise by bisection.
_MAX_SPREAD = 16


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
        self._rows_of_integers = _IntegerRows(values.to_numpy()) if pa.types.is_integer(values.type) else None

    @property
    def num_rows(self) -> int:
        """Rows of the table: one a value, and those for unknown and missing ids."""
        return len(self.values) + FIRST_ROW

    def encode(self, ids: pa.Array) -> Ints:
        """Rows of ``ids``; ids that are not in the vocabulary become row 0, nulls row 1.

        Raises:
            ValueError: strings where the vocabulary holds integers, or the other way round.
        """
        if ids.type != self.values.type:
            raise ValueError(f"ids should be {self.values.type}, as in the training data, received {ids.type}; cast the column in the file")
        if self._rows_of_integers is not None:
            rows = self._rows_of_integers((pc.fill_null(ids, 0) if ids.null_count else ids).to_numpy())
        else:
            rows = pc.fill_null(pc.index_in(ids, value_set=self.values), UNKNOWN_ROW - FIRST_ROW).to_numpy().astype(np.int64) + FIRST_ROW
        return _with_missing(rows, ids)


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
        rows = (hash64(ids, self._table) % np.uint64(self.num_rows - FIRST_ROW)).astype(np.int64) + FIRST_ROW
        return _with_missing(rows, ids)


def _with_missing(rows: Ints, ids: pa.Array) -> Ints:
    if ids.null_count:
        rows[pc.is_null(ids).to_numpy(zero_copy_only=False)] = MISSING_ROW
    return rows


class _IntegerRows:
    """Table row of an integer, row 0 for one that is not among the values."""

    def __init__(self, values: Ints) -> None:
        order = np.argsort(values)
        self._sorted, self._rows = values[order], order + FIRST_ROW
        self._low, high = (int(self._sorted[0]), int(self._sorted[-1])) if len(values) else (0, -1)
        self._table: Ints | None = None
        if (span := high - self._low + 1) <= _MAX_SPREAD * len(values):
            self._table = np.full(span + 1, UNKNOWN_ROW)  # the last entry answers everything outside the span
            self._table[self._sorted - self._low] = self._rows

    def __call__(self, ids: Ints) -> Ints:
        if self._table is not None:
            offsets = (ids - self._low).view(np.uint64)  # what lies below the span wraps round to far above it
            return self._table[np.minimum(offsets, len(self._table) - 1).view(np.int64)]
        found = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
        return np.where(self._sorted[found] == ids, self._rows[found], UNKNOWN_ROW)


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
    return Vocabulary(one_chunk(kept["value"]), kept["count"].to_numpy().astype(np.int64))

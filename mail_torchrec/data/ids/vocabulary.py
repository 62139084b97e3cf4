"""Raw ids -> table rows.

Row 0 of every table is for ids outside its vocabulary, row 1 for nulls; values begin at row 2.
"""

from functools import cached_property
from itertools import count
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.parquet.arrow import Ints, one_chunk

UNKNOWN_ROW = 0
MISSING_ROW = 1
FIRST_ROW = 2
# An integer vocabulary is looked up in a plain array where that takes at most so many entries a
# value, otherwise by bisection.
_MAX_SPREAD = 16
# Multiples of it, modulo 1, fill 0..1 evenly from the first few on.
_GOLDEN = (5**0.5 - 1) / 2
# Arrow puts a whole vocabulary of strings into a hash table for each call: half a second for a
# million, were it done for each request.
_MAX_COPIED = 1000


class IdEncoder(Protocol):
    """How the ids of one table become rows."""

    @property
    def num_rows(self) -> int:
        """Rows of the table."""

    def encode(self, ids: pa.Array) -> Ints:
        """Rows of ``ids`` (int64 or large_string, nulls allowed)."""


class Vocabulary:
    """The values seen in training, in the order of their rows.

    Args:
        values: distinct values (int64 or large_string).
        counts: how often each was seen.
    """

    def __init__(self, values: pa.Array, counts: Ints) -> None:
        assert len(values) == len(counts)
        self.values, self.counts = values, counts
        self._rows_of_integers = (
            _IntegerRows(values.to_numpy()) if pa.types.is_integer(values.type) else None
        )

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
            raise ValueError(
                f"ids should be {self.values.type}, as in the training data, received {ids.type}; "
                "cast the column in the file"
            )
        if self._rows_of_integers is not None:
            rows = self._rows_of_integers(_filled(ids, 0).to_numpy())
        elif len(self.values) > max(len(ids), _MAX_COPIED):
            rows = self._rows_of_strings(ids)
        else:
            rows = (
                _filled(pc.index_in(ids, value_set=self.values), UNKNOWN_ROW - FIRST_ROW)
                .to_numpy()
                .astype(np.int64)
                + FIRST_ROW
            )
        return _with_missing(rows, ids)

    @cached_property
    def _rows_of_strings(self) -> "_StringRows":
        return _StringRows(self.values)


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
        rows = (hash64(ids, self._table) % np.uint64(self.num_rows - FIRST_ROW)).astype(
            np.int64
        ) + FIRST_ROW
        return _with_missing(rows, ids)


def _filled(values: pa.Array, value: int | bool) -> pa.Array:
    return pc.fill_null(values, value) if values.null_count else values


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
            self._table = np.full(
                span + 1, UNKNOWN_ROW
            )  # the last entry answers everything outside the span
            self._table[self._sorted - self._low] = self._rows

    def __call__(self, ids: Ints) -> Ints:
        if self._table is not None:
            offsets = (ids - self._low).view(
                np.uint64
            )  # what lies below the span wraps round to far above it
            return self._table[np.minimum(offsets, len(self._table) - 1).view(np.int64)]
        found = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
        return np.where(self._sorted[found] == ids, self._rows[found], UNKNOWN_ROW)


class _StringRows:
    """Table row of a string, row 0 for one that is not among the values: found by its hash, then compared."""

    def __init__(self, values: pa.Array) -> None:
        self._values = values
        for salt in map(str, count()):  # until no two values share a hash
            words = hash64(values, salt).view(np.int64)
            if len(np.unique(words)) == len(words):
                break
        self._salt, self._rows = salt, _IntegerRows(words)

    def __call__(self, ids: pa.Array) -> Ints:
        rows = self._rows(hash64(ids, self._salt).view(np.int64))
        same = pc.equal(self._values.take(pa.array(np.maximum(rows - FIRST_ROW, 0))), ids)
        return np.where(_filled(same, False).to_numpy(zero_copy_only=False), rows, UNKNOWN_ROW)


def count_values(previous: pa.Table | None, ids: pa.Array) -> pa.Table:
    """Adds the value counts of ``ids`` to those counted before (a table of ``value`` and ``count``)."""
    counted = pc.value_counts(ids.drop_null())
    table = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
    if previous is None:
        return table
    both = pa.concat_tables([previous, table])
    return both.group_by("value").aggregate([("count", "sum")]).rename_columns(["value", "count"])


def vocabulary_from_counts(counts: pa.Table, *, min_count: int, max_rows: int | None) -> Vocabulary:
    """The most frequent values (ties by value) counted at least ``min_count`` times, at most ``max_rows`` table rows.

    Frequent values are spread evenly over the rows: row-wise sharding gives each rank consecutive
    ones, and in the order of frequency the first rank would look up nearly everything.
    """
    kept = counts.filter(pc.field("count") >= min_count).sort_by(
        [("count", "descending"), ("value", "ascending")]
    )
    if max_rows is not None:
        kept = kept.slice(0, max(max_rows - FIRST_ROW, 0))
    kept = kept.take(pa.array(np.argsort(np.arange(len(kept)) * _GOLDEN % 1)))
    return Vocabulary(one_chunk(kept["value"]), kept["count"].to_numpy().astype(np.int64))

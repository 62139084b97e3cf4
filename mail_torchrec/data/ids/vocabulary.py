"""Id policy ``vocabulary``: each value of the training data has a row of its own.

Shapes: ``N`` ids, ``V`` values of a vocabulary.
"""

import os
from datetime import date
from functools import cached_property
from io import BufferedReader
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mail_torchrec.data.ids.counts import IdCounts, order_by_frequency
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.ids.policy import (
    FIRST_ROW,
    UNKNOWN_ROW,
    IdEncoder,
    IdManifestEntry,
    IdPolicy,
    fill_missing_rows,
)
from mail_torchrec.data.parquet.arrow import Ints, one_chunk
from mail_torchrec.utils.run_files import atomic_file
from mail_torchrec.utils.safe_paths import open_regular

# Integers are encoded by a plain array where it takes at most so many entries a value, otherwise
# by bisection.
_MAX_SPREAD = 16
_VALUE_TYPES = (pa.int64(), pa.large_string(), pa.bool_(), pa.null())
# Values are distinct, so that compression takes less than a twentieth of their bytes.
_MAX_ROWS_A_BYTE = 8
# Multiples of it, modulo 1, fill 0..1 evenly from the first few on.
_GOLDEN_RATIO = (5**0.5 - 1) / 2
# Arrow's index_in puts a whole vocabulary of strings into a hash table at each call: half a second
# for a million values, too long for each request.
_MAX_INDEX_IN = 1000


class Vocabulary(IdEncoder):
    """Encodes the values seen in training as rows of their own, all others as row 0.

    Args:
        values: distinct values [V] in the order of their rows (int64 or large_string).
        counts_V: occurrences of each value in the training data.
    """

    def __init__(self, values: pa.Array, counts_V: Ints) -> None:
        assert len(values) == len(counts_V)
        self._values, self._counts_V = values, counts_V

    @property
    def num_rows(self) -> int:
        """Number of rows of the table: one a value, and those for unknown and null ids."""
        return len(self._values) + FIRST_ROW

    @property
    def values(self) -> pa.Array:
        """Known values [V] in the order of their rows."""
        return self._values

    @property
    def counts_V(self) -> Ints:
        """Occurrences of each value in the training data."""
        return self._counts_V

    def encode(self, ids: pa.Array) -> Ints:
        """Encodes ids [N] as table rows [N]; unknown ids become row 0, nulls row 1.

        Raises:
            ValueError: strings where the vocabulary holds integers, or the other way round.
        """
        if not len(self._values) or ids.null_count == len(ids):  # of any type
            return fill_missing_rows(np.full(len(ids), UNKNOWN_ROW, np.int64), ids)
        if ids.type != self._values.type:
            raise ValueError(
                f"ids should be {self._values.type}, as in the training data, received {ids.type}; "
                "cast the column in the file"
            )
        if pa.types.is_integer(self._values.type):
            rows_N = self._integer_rows(_fill_null(ids, 0).to_numpy())
        elif len(self._values) > max(len(ids), _MAX_INDEX_IN):
            rows_N = self._string_rows(ids)
        else:
            found = pc.index_in(ids, value_set=self._values)
            indices_N = _fill_null(found, UNKNOWN_ROW - FIRST_ROW).to_numpy()
            rows_N = indices_N.astype(np.int64) + FIRST_ROW
        return fill_missing_rows(rows_N, ids)

    def save(self, folder: Path, table: str) -> None:
        """Writes ``TABLE.parquet`` with columns ``value`` and ``count``, in the order of rows."""
        columns = {"value": self._values, "count": self._counts_V}
        with atomic_file(folder / f"{table}.parquet") as file:
            pq.write_table(pa.table(columns), file)

    def manifest_entry(self, folder: str, table: str) -> IdManifestEntry:
        """Describes the encoding by the file of its values."""
        return IdManifestEntry(VocabularyPolicy.name, vocabulary=f"{folder}/{table}.parquet")

    def prepare(self) -> "Vocabulary":
        """Makes now what the first call of :meth:`encode` would make, and returns itself."""
        if pa.types.is_integer(self._values.type):
            _ = self._integer_rows
        return self

    @cached_property
    def _integer_rows(self) -> "_IntegerRows":
        return _IntegerRows(self._values.to_numpy())

    @cached_property
    def _string_rows(self) -> "_StringRows":
        return _StringRows(self._values)


class VocabularyPolicy(IdPolicy):
    """Gives each value that occurs ``min_count`` times a row, the most frequent ones first.

    Frequent values are spread evenly over the rows: row-wise sharding gives each rank consecutive
    rows, and in the order of frequency the first rank would serve nearly all lookups.
    """

    name = "vocabulary"
    needs_counts = True

    def check_settings(self) -> None:
        """Accepts any settings."""

    @property
    def rows_without_data(self) -> int | None:
        """Maximum number of rows; None where the settings name none."""
        return self.settings.rows

    def keep_counted(self, counted: pa.Table) -> pa.Table:
        """Leaves out values that are too rare, and those behind the most frequent ones.

        Args:
            counted: columns ``value`` and ``count``.
        """
        kept = counted.filter(pc.field("count") >= self.settings.min_count)
        if self.settings.rows is None or len(kept) + FIRST_ROW <= self.settings.rows:
            return kept
        order_N = order_by_frequency(one_chunk(kept["value"]), kept["count"].to_numpy())
        return kept.take(pa.array(order_N[: self.settings.rows - FIRST_ROW]))

    def fit(self, counts: IdCounts, day: date | None = None) -> Vocabulary:
        """Takes the most frequent values, ties in the order of their values."""
        kept = self.keep_counted(counts.table)
        values, counts_V = one_chunk(kept["value"]), kept["count"].to_numpy().astype(np.int64)
        order_V = order_by_frequency(values, counts_V)
        order_V = order_V[np.argsort(np.arange(len(order_V)) * _GOLDEN_RATIO % 1)]
        return Vocabulary(values.take(pa.array(order_V)), counts_V[order_V])

    def load(self, folder: Path) -> Vocabulary:
        """Reads ``TABLE.parquet``, a regular file or a link to one."""
        path = folder / f"{self.table}.parquet"
        with open_regular(path, follow_link=True) as file:
            return _vocabulary_of(_read_vocabulary(path, file)).prepare()


def _read_vocabulary(path: Path, file: BufferedReader) -> pa.Table:
    """Reads a vocabulary, if it has the columns of one and not more rows than its bytes can hold.

    Raises:
        ValueError: it is none.
    """
    num_bytes = file.seek(0, os.SEEK_END)
    try:
        stored = pq.ParquetFile(file)
        kinds = {field.name: field.type for field in stored.schema_arrow}
        is_one = kinds in ({"value": kind, "count": pa.int64()} for kind in _VALUE_TYPES)
        if not is_one or stored.metadata.num_rows > _MAX_ROWS_A_BYTE * num_bytes:
            raise ValueError(f"{stored.metadata.num_rows:,} rows of {kinds} in {num_bytes:,} bytes")
        table = stored.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"'{path}' should be a vocabulary, it is damaged: {message}") from error
    if table["value"].null_count or table["count"].null_count:
        raise ValueError(f"'{path}' should be a vocabulary, it is damaged: it has nulls")
    return table


def _vocabulary_of(table: pa.Table) -> Vocabulary:
    return Vocabulary(one_chunk(table["value"]), table["count"].to_numpy().astype(np.int64))


def _fill_null(values: pa.Array, value: int | bool) -> pa.Array:
    return pc.fill_null(values, value) if values.null_count else values


class _IntegerRows:
    """Finds the table row of an integer; row 0 for one that is not among the values.

    Args:
        values_V: distinct values in the order of their rows.
    """

    def __init__(self, values_V: Ints) -> None:
        order_V = np.argsort(values_V)
        self._sorted_V, self._rows_V = values_V[order_V], order_V + FIRST_ROW
        self._low, high = (
            (int(self._sorted_V[0]), int(self._sorted_V[-1])) if len(values_V) else (0, -1)
        )
        self._row_by_offset: Ints | None = None
        if (span := high - self._low + 1) <= _MAX_SPREAD * len(values_V):
            # The last entry is the row of every integer outside the span.
            self._row_by_offset = np.full(span + 1, UNKNOWN_ROW)
            self._row_by_offset[self._sorted_V - self._low] = self._rows_V

    def __call__(self, ids_N: Ints) -> Ints:
        """Returns table rows [N]."""
        if self._row_by_offset is not None:
            # As unsigned integers, ids below the span wrap round to far above it.
            offsets_N = (ids_N - self._low).view(np.uint64)
            last = len(self._row_by_offset) - 1
            return self._row_by_offset[np.minimum(offsets_N, last).view(np.int64)]
        found_N = np.minimum(np.searchsorted(self._sorted_V, ids_N), len(self._sorted_V) - 1)
        return np.where(self._sorted_V[found_N] == ids_N, self._rows_V[found_N], UNKNOWN_ROW)


class _StringRows:
    """Finds the table row of a string by its hash and compares the string; else row 0.

    Args:
        values: distinct values [V] in the order of their rows.
    """

    def __init__(self, values: pa.Array) -> None:
        self._values = values
        for salt in map(str, count()):  # until no two values have the same hash
            hashes_V = hash64(values, salt).view(np.int64)
            if len(np.unique(hashes_V)) == len(hashes_V):
                break
        self._salt, self._rows_of_hashes = salt, _IntegerRows(hashes_V)

    def __call__(self, ids: pa.Array) -> Ints:
        """Returns the table rows [N] of ids [N]."""
        rows_N = self._rows_of_hashes(hash64(ids, self._salt).view(np.int64))
        candidates = self._values.take(pa.array(np.maximum(rows_N - FIRST_ROW, 0)))
        is_equal = _fill_null(pc.equal(candidates, ids), False)
        return np.where(is_equal.to_numpy(zero_copy_only=False), rows_N, UNKNOWN_ROW)

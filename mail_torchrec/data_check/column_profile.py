"""Profile of one column of a sample: its type, nulls, distinct values, lengths of its lists.

Shapes: ``R`` rows of the sample, ``V`` values of all lists end to end.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.list_shapes import find_padding
from mail_torchrec.data.parquet.arrow import Ints, list_lengths, one_chunk
from mail_torchrec.data.parquet.logical_types import LogicalType, element_type, logical_type

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_EPOCH = {"second": 1, "millisecond": 1_000, "microsecond": 1_000_000}
_FIRST_TIME, _LAST_TIME = 946_684_800, 4_102_444_800  # the years 2000 to 2100
_TIME_WORDS = {"time", "timestamp", "ts", "date", "day", "dt", "datetime", "at", "ms", "unix"}


@dataclass(frozen=True)
class ColumnProfile:
    """One column of a sample.

    Args:
        name: in the files.
        values: [R] in plain types.
        stored: type in the files.
        fault: why the values cannot be read, which are null then.
    """

    name: str
    values: pa.ChunkedArray
    stored: pa.DataType
    fault: str | None = None

    @cached_property
    def words(self) -> frozenset[str]:
        """Words of the name: of ``isClicked`` and ``is_clicked`` ``is``, ``clicked``."""
        parts = re.split(r"[^a-z0-9]+", _CAMEL.sub("_", self.name).lower())
        return frozenset(part for part in parts if part)

    @property
    def is_list(self) -> bool:
        """True for a column of lists."""
        kind = self.values.type  # nulls alone may be those of lists too
        return element_type(kind) is not None and not pa.types.is_null(kind)

    @property
    def logical(self) -> LogicalType | None:
        """Logical type of the values, of a list's elements; None: times, structs ..."""
        return logical_type(element_type(self.values.type) or self.values.type)

    @cached_property
    def flat(self) -> pa.Array:
        """Values end to end: [V] of lists, [R] of one value a row."""
        return one_chunk(pc.list_flatten(self.values) if self.is_list else self.values)

    @cached_property
    def lengths_R(self) -> Ints:
        """Lengths of the lists, [R]."""
        return list_lengths(self.values)

    @cached_property
    def numbers(self) -> npt.NDArray[np.float64]:
        """Values of a column of numbers or booleans, [R]; null is NaN."""
        values = one_chunk(self.values)
        values = values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values
        numbers_R: npt.NDArray[np.float64] = values.cast(pa.float64(), safe=False).to_numpy(
            zero_copy_only=False
        )
        return numbers_R

    @property
    def null_share(self) -> float:
        """Share of the rows that are null."""
        return float(self.values.null_count / max(1, len(self.values)))

    @cached_property
    def distinct(self) -> pa.Array:
        """Distinct values that are not null."""
        return pc.unique(self.flat.drop_null())

    @property
    def num_distinct(self) -> int:
        """Number of distinct values that are not null."""
        return len(self.distinct)

    @cached_property
    def range(self) -> tuple[Any, Any]:
        """Smallest and largest value; None and None without a value, or without an order."""
        if self.logical is None and not self.is_timestamp:
            return None, None
        found = pc.min_max(self.distinct).as_py()
        return found["min"], found["max"]

    @property
    def is_id(self) -> bool:
        """True for integers, strings and booleans, which can be looked up in a table."""
        return self.logical in (LogicalType.INTEGER, LogicalType.STRING, LogicalType.BOOLEAN)

    @cached_property
    def is_binary(self) -> bool:
        """True for one value a row, 0 or 1 and both."""
        is_number = self.logical in (LogicalType.INTEGER, LogicalType.BOOLEAN, LogicalType.NUMBER)
        if self.is_list or not is_number or self.num_distinct != 2:
            return False
        return {float(value) for value in self.distinct.to_pylist()} == {0.0, 1.0}

    @cached_property
    def is_vector(self) -> bool:
        """True for lists of numbers of one length above 1."""
        lengths = np.unique(self.lengths_R[pc.is_valid(self.values).to_numpy()])
        return self.logical is LogicalType.NUMBER and len(lengths) == 1 and lengths[0] > 1

    @cached_property
    def padding(self) -> int | str | None:
        """Value that fills up the lists of ids to one length; None where none does."""
        if not self.is_list or not self.is_id:
            return None
        found = find_padding(self.values)
        value: int | str | None = None if found is None else found.as_py()
        return value

    @property
    def is_timestamp(self) -> bool:
        """True for values of a type of times or dates."""
        kind = element_type(self.values.type) or self.values.type
        return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))

    @cached_property
    def time_unit(self) -> str | None:
        """Unit of integers that look like times (``second``, ..., ``yyyymmdd``); None for others.

        Their name says so, and all are times between 2000 and 2100.
        """
        low, high = self.range
        if self.logical is not LogicalType.INTEGER or low is None or not self.words & _TIME_WORDS:
            return None
        for unit, scale in _EPOCH.items():
            if _FIRST_TIME * scale <= low and high <= _LAST_TIME * scale:
                return unit
        is_date = 20_000_101 <= low and high <= 21_001_231
        return "yyyymmdd" if is_date else None

    @cached_property
    def is_day_text(self) -> bool:
        """True for text such as 2024-05-31."""
        values = self.distinct[:50].to_pylist()
        return self.logical is LogicalType.STRING and all(
            re.match(r"\d{4}-\d\d-\d\d", str(value)) for value in values
        )

    @property
    def is_time(self) -> bool:
        """True for times and dates in any of these forms."""
        return self.is_timestamp or self.time_unit is not None or self.is_day_text

    def codes(self, max_rows: int) -> npt.NDArray[np.int64]:
        """Numbers the distinct values of the first rows, a list as a whole, [at most max_rows]."""
        values = self.values.slice(0, max_rows)
        if not self.is_list:
            encoded = one_chunk(values.dictionary_encode(null_encoding="encode")).indices
            codes_R: npt.NDArray[np.int64] = encoded.to_numpy().astype(np.int64)
            return codes_R
        numbers: dict[Any, int] = {}
        keys = (tuple(value or ()) for value in values.to_pylist())
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def determination(codes_R: npt.NDArray[np.int64], groups_R: npt.NDArray[np.int64]) -> float:
    """Measures how far a value follows from its row's group, 0 (not at all) to 1 (always).

    The share of rows with their group's most common value, beside that of shuffled values; NaN
    where fewer than 30 rows have another row of their group.

    Args:
        codes_R: values of R rows.
        groups_R: their groups, such as users.
    """
    _, groups_R, sizes = np.unique(groups_R, return_inverse=True, return_counts=True)
    kept = sizes[groups_R] > 1
    if kept.sum() < 30:
        return float("nan")
    codes, groups = codes_R[kept], groups_R[kept]
    found = _most_common_share(codes, groups)
    chance = _most_common_share(np.random.default_rng(0).permutation(codes), groups)
    return 0.0 if chance >= 1 else max(0.0, (found - chance) / (1 - chance))


def _most_common_share(codes: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]) -> float:
    pairs, counts = np.unique(groups * (codes.max() + 1) + codes, return_counts=True)
    most = np.zeros(groups.max() + 1)
    np.maximum.at(most, pairs // (codes.max() + 1), counts)
    return float(most.sum() / len(codes))

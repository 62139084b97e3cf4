"""Validation rows: files of their own, or rows kept out of training (some users, or the last days).

Every row of the training files has a number, and those with the highest numbers are validation
rows: a user's number is 1 or 0 by a hash of the key, a day's number counts days.

Shapes: ``R`` rows, ``N`` values.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from mail_torchrec.data.column_types import ColumnType, plain_table
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.parquet.arrow import Bools, Ints, one_chunk
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.parquet.selection import DataPart
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.settings import Settings

_SECONDS = {"second": 86_400, "millisecond": 86_400_000, "day": 1}
_DATE = pa.date32()
_KINDS = ("path", "share", "last_days")


class ValidationSettings(Settings):
    """Rows that measure the model while it trains: give `path`, `share` or `last_days`."""

    path: DataPart | None = None
    """Validation data below `data.root` (or a URI), as `data.test`."""
    share: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Share of the training users whose rows are kept out of training; a hash of the key chooses
    them. Ids that only these users have are unknown ones, so this measures users never seen."""
    salt: str = "validation"
    """Salt of the hash for `share`; another salt chooses other users."""
    last_days: int | None = Field(default=None, ge=1)
    """Number of newest days of the training rows that are kept out of training, by the days in
    `column`."""
    column: str | None = None
    """Column of the files with the time of each row, for `last_days`: a date, a timestamp, a text
    such as 2024-05-31, or an integer in a `unit`. The schema need not have it."""
    unit: Literal["second", "millisecond", "day", "yyyymmdd"] | None = None
    """Unit of an integer `column`, from 1970 in UTC; `yyyymmdd` is 20240531."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of {', '.join(_KINDS)}, received {' and '.join(given) or 'none'}"
            )
        if self.last_days is not None and self.column is None:
            raise ValueError("last_days needs column, the files' column with the time of a row")
        if self.last_days is None and (self.column or self.unit):
            raise ValueError(f"column and unit are for last_days, received with {given[0]}; drop")
        return self

    @property
    def is_split(self) -> bool:
        """Returns whether the rows are taken from the training files."""
        return self.path is None


@dataclass(frozen=True)
class RowSplit:
    """Numbers the rows of training files; the highest numbers are validation rows'."""

    settings: ValidationSettings
    schema: Schema

    @property
    def column(self) -> str:
        """Column of the files that decides."""
        return self.settings.column or self.schema.file_column(self.schema.group_key)

    def numbers(self, stored: pa.Table, types: Mapping[str, ColumnType], file: str) -> Ints:
        """Numbers rows, [R].

        Args:
            stored: R rows as the files have them, with :attr:`column`.
            types: of the schema's columns.
            file: for messages.

        Raises:
            ValueError: a time that is missing or of an unknown form.
        """
        name, share = self.column, self.settings.share
        if share is None:
            return _days(stored[name], self.settings.unit, f"{file}: column '{name}'")
        keys = plain_table(stored.select([name]), self.schema, types, file)[name]
        hashes_R = hash64(plain_ids(keys, file=file, name=name), self.settings.salt)
        return (hashes_R < np.uint64(int(share * 2**64))).astype(np.int64)

    def first(self, numbers: Iterable[int], path: str) -> int:
        """Returns the lowest number of validation rows.

        Args:
            numbers: of all rows.
            path: of the files, for messages.

        Raises:
            ValueError: no row would be left for training, or for validation.
        """
        found = set(numbers)
        first = 1 if self.settings.last_days is None else max(found) - self.settings.last_days + 1
        if min(found) >= first or max(found) < first:
            part = "validation" if max(found) < first else "training"
            days = self.settings.last_days is not None
            received = f"{max(found) - min(found) + 1} days" if days else "too few users"
            raise ValueError(
                f"'{path}': data.validation leaves no rows for {part}, the files have {received}; "
                f"change data.validation.{'last_days' if days else 'share'}"
            )
        return first


@dataclass(frozen=True)
class RowFilter:
    """Keeps the training rows or the validation rows of files."""

    split: RowSplit
    first: int
    """Lowest number of validation rows."""
    keeps_validation: bool

    def mask(self, stored: pa.Table, types: Mapping[str, ColumnType], file: str) -> Bools:
        """Returns True for the rows that are kept, [R]; arguments as :meth:`RowSplit.numbers`."""
        is_validation_R: Bools = self.split.numbers(stored, types, file) >= self.first
        return is_validation_R if self.keeps_validation else ~is_validation_R

    def count(self, numbers: Mapping[int, int]) -> int:
        """Counts the rows that are kept, of rows counted by number."""
        return sum(
            rows
            for number, rows in numbers.items()
            if (number >= self.first) == self.keeps_validation
        )


def count_numbers(numbers_R: Ints) -> dict[int, int]:
    """Counts rows [R] by their number."""
    numbers, counts = np.unique(numbers_R, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _days(column: pa.ChunkedArray, unit: str | None, where: str) -> Ints:
    """Returns the day of each time, [N], counted from 1970."""
    values = one_chunk(column)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.null_count:
        raise ValueError(f"{where} should hold a time in every row, received null; fill it in")
    kind = values.type
    if pa.types.is_integer(kind):
        return _days_of_integers(values, unit, where)
    if unit is not None:
        raise ValueError(
            f"{where} is of type {kind}, and data.validation.unit is for integers; drop unit"
        )
    try:
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            values = pc.local_timestamp(values)
        elif not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
            values = pc.cast(pc.utf8_slice_codeunits(pc.cast(values, pa.string()), 0, 10), _DATE)
        days: Any = pc.cast(pc.cast(values, _DATE, safe=False), pa.int32())
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(
            f"{where} should hold dates, timestamps, texts such as 2024-05-31, or integers, "
            f"received {kind} ({error}); name another column in data.validation.column"
        ) from error
    return np.asarray(days.to_numpy(zero_copy_only=False), np.int64)


def _days_of_integers(values: pa.Array, unit: str | None, where: str) -> Ints:
    numbers_N = np.asarray(values.to_numpy(zero_copy_only=False)).astype(np.int64)
    if unit is None:
        raise ValueError(
            f"{where} holds integers such as {int(numbers_N[0]) if len(numbers_N) else 0}; set "
            "data.validation.unit to second, millisecond, day or yyyymmdd"
        )
    if unit != "yyyymmdd":
        return numbers_N // _SECONDS[unit]
    distinct, places_N = np.unique(numbers_N, return_inverse=True)
    try:
        dates = [
            np.datetime64(f"{n // 10000:04}-{n // 100 % 100:02}-{n % 100:02}") for n in distinct
        ]
    except ValueError as error:
        raise ValueError(f"{where} should hold dates such as 20240531: {error}") from error
    days_N: Ints = np.array(dates, "datetime64[D]").astype(np.int64)[places_N]
    return days_N

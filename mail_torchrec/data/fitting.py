"""Fits the encoders of ids and numbers in one pass over the training files."""

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.content.vector_scales import VectorMoments, VectorScale
from mail_torchrec.data.content.vector_values import vector_values
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.history import HistoryLimits, row_days
from mail_torchrec.data.ids.counts import IdCounts
from mail_torchrec.data.ids.policy import IdEncoder, IdPolicy
from mail_torchrec.data.items.hidden_items import without_hidden
from mail_torchrec.data.numeric import Moments, NumericScale, numeric_values
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import RowGroupPart, Source
from mail_torchrec.utils.progress import progress_bar

_HELD_BYTES = 2**27
"""Bytes of counts of all tables that stay in memory; merging them takes some times as many."""
_MANY_ROWS = 2**18
"""Rows of a row group from which its numbers are read a column at a time."""


class RowObserver(Protocol):
    """Something else that is to be learnt in the same pass."""

    def add(self, table: pa.Table, limits: HistoryLimits, file: str, /) -> None:
        """Adds the rows of one row group."""

    def merge(self, other: Any, /) -> None:
        """Adds what an observer of the same class learnt of the rows that follow."""


def fit_encoders(
    source: Source,
    schema: Schema,
    cold_start: ColdStartSettings,
    *,
    day: date | None = None,
    observers: Sequence[RowObserver] = (),
    progress: bool = False,
) -> Encoders:
    """Counts the ids of every table whose policy needs it, and sums the numbers and vectors.

    Behaviours that the simulated cold start hides are not counted, so that hidden ids stay out of
    the vocabularies too.

    Args:
        source: training files.
        schema: their columns, and the id policies of the tables.
        cold_start: settings of the simulation.
        day: of the training files, for policies by which ids expire; None where none is known.
        observers: get every row group too.
        progress: show a progress bar.

    Raises:
        ValueError: a bad value in a column of numbers or vectors.
    """
    fitter = EncoderFitter(schema, cold_start, observers)
    fitter.read(source, [RowGroupPart(group) for group in source.row_groups], progress=progress)
    return fitter.encoders(day)


def update_encoders(fitter: "EncoderFitter", parent: Encoders, day: date | None) -> Encoders:
    """Updates the encoders of a run that is continued on other files.

    Each table's policy decides which ids have rows; the scales of numbers and vectors stay as they
    are.

    Args:
        fitter: has read the new training files.
        parent: encoders of the run that is continued; they are not changed.
        day: of the new files, by which ids expire; None where none is known.

    Raises:
        ValueError: ids of another type.
    """
    return Encoders(fitter.updated_tables(parent, day), parent.scales, parent.vectors)


class FittedPart(NamedTuple):
    """Sums of the row groups that one process has read, without counts of ids."""

    numbers: dict[str, list[Moments]]
    """Of each numeric column, by row group in the order of reading."""
    vectors: dict[str, list[VectorMoments]]
    """Of each column of vectors, by piece."""
    vector_files: dict[str, str]
    """File and row group of the first vector of each column."""
    observers: Sequence[RowObserver]


class EncoderFitter:
    """Counts and sums of the row groups read so far.

    Args:
        schema: columns, and the id policies of the tables.
        cold_start: settings of the simulation.
        observers: get every row group too.
    """

    def __init__(
        self, schema: Schema, cold_start: ColdStartSettings, observers: Sequence[RowObserver] = ()
    ) -> None:
        self._schema, self._cold_start = schema, cold_start.of_training
        self.policies = {name: schema.id_policy(name) for name in schema.table_names}
        self.counts = {name: IdCounts() for name in schema.table_names}
        self.part = FittedPart(
            {name: [] for name in schema.numeric()},
            {name: [] for name in schema.vectors()},
            {},
            observers,
        )
        self._dims = {name: schema.columns[name].length for name in schema.vectors()}

    def read(
        self, source: Source, parts: Iterable[RowGroupPart], *, progress: bool = False
    ) -> None:
        """Reads row groups, or parts of them.

        The numbers of a row group are all read with its first piece, for how a sum is rounded
        depends on which numbers are summed up together.

        Args:
            source: training files.
            parts: of their row groups, in their order.
            progress: show a progress bar.

        Raises:
            ValueError: a bad value in a column of numbers or vectors.
        """
        bar = progress_bar(parts, desc="vocabularies", unit="row group", disable=not progress)
        for part in bar:
            file = source.file(part.group)
            try:
                self._read(source, part, file)
            except ValueError:
                # With the row's number in the row group.
                self._add([source.whole(part.group)], file, with_numbers=True)
                raise

    def _read(self, source: Source, part: RowGroupPart, file: str) -> None:
        is_small = part.is_whole and part.group.num_rows <= _MANY_ROWS
        self._add(source.pieces(part.group, part=part), file, with_numbers=is_small)
        for name in self.part.numbers if not (is_small or part.first) else ():
            column = self._schema.file_column(name)
            columns = None if column in source.constants else [column]
            pieces = source.pieces(part.group, columns)
            numbers_R = np.concatenate([self._numbers(table, name, file) for table in pieces])
            self.part.numbers[name].append(Moments.of(numbers_R))

    def _add(self, tables: Iterable[pa.Table], file: str, *, with_numbers: bool) -> None:
        """Adds rows of one row group, in several tables."""
        numbers: dict[str, list[Any]] = {
            name: [] for name in (self.part.numbers if with_numbers else ())
        }
        for table in tables:
            self._add_ids(table, file)
            self._add_vectors(table, file)
            for name, pieces in numbers.items():
                pieces.append(self._numbers(table, name, file))
        for name, pieces in numbers.items():
            self.part.numbers[name].append(Moments.of(np.concatenate(pieces)))

    def _add_ids(self, table: pa.Table, file: str) -> None:
        schema = self._schema
        key = schema.file_column(schema.group_key)
        keys = plain_ids(table[key], file=file, name=key)
        limits = HistoryLimits.simulated(
            schema, keys, self._cold_start, row_days(table, schema, file)
        )
        for observer in self.part.observers:
            observer.add(table, limits, file)
        for name in schema.id_columns:
            if self.policies[schema.table_of(name)].needs_counts:
                ids = limits.shown_ids(table, name, file)[0]
                ids = without_hidden(ids, name, schema, self._cold_start.items)
                self.counts[schema.table_of(name)].add(ids)
        if sum(counts.num_held_bytes for counts in self.counts.values()) > _HELD_BYTES:
            max(self.counts.values(), key=lambda counts: counts.num_held_bytes).spill()

    def _add_vectors(self, table: pa.Table, file: str) -> None:
        for name, parts in self.part.vectors.items():
            column = self._schema.file_column(name)
            vectors = vector_values(
                table[column], self._dims[name], file=file, name=column, rows="of its row group"
            )
            parts.append(VectorMoments.of(vectors))
            if parts[-1].count:
                self._dims[name] = parts[-1].dim
                self.part.vector_files.setdefault(name, file)

    def _numbers(self, table: pa.Table, name: str, file: str) -> npt.NDArray[np.float64]:
        column, transform = self._schema.file_column(name), self._schema.columns[name].transform
        return numeric_values(table[column], transform, file=file, name=column)

    def merge(self, part: FittedPart) -> None:
        """Adds what another process has read, of rows behind those of this one; without counts.

        Raises:
            ValueError: its vectors are of another length.
        """
        for name, moments in part.numbers.items():
            self.part.numbers[name].extend(moments)
        for name, file in part.vector_files.items():
            dim = next(vectors.dim for vectors in part.vectors[name] if vectors.count)
            if dim != (known := self._dims[name] or dim):
                raise ValueError(
                    f"{file}: column '{self._schema.file_column(name)}' should hold vectors of "
                    f"{known} numbers, as in {self.part.vector_files[name]}, received {dim}; give "
                    "all rows vectors of one length"
                )
            self._dims[name] = dim
            self.part.vector_files.setdefault(name, file)
            self.part.vectors[name].extend(part.vectors[name])
        for mine, other in zip(self.part.observers, part.observers, strict=True):
            mine.merge(other)

    def _scale(self, name: str) -> NumericScale:
        moments = Moments()
        for part in self.part.numbers[name]:
            moments.merge(part)
        return moments.scale()

    def _vector_scale(self, name: str) -> VectorScale:
        moments = VectorMoments(self._dims[name])
        for part in self.part.vectors[name]:
            moments.merge(part)
        if not moments.count:
            raise ValueError(
                f"column '{self._schema.file_column(name)}' should hold a vector in the training "
                f"data, every row is null; drop schema.columns.{name}"
            )
        return moments.scale()

    def updated_tables(self, parent: Encoders, day: date | None) -> dict[str, IdEncoder]:
        """Returns the id encoders of a run that continues another one, by table."""
        return self._tables(
            lambda name, policy, counts: policy.update(parent.tables[name], counts, day)
        )

    def _tables(
        self, build: Callable[[str, IdPolicy, IdCounts], IdEncoder]
    ) -> dict[str, IdEncoder]:
        """Builds the id encoder of each table; errors name the table."""
        tables = {}
        for name, policy in self.policies.items():
            try:
                tables[name] = build(name, policy, self.counts[name])
            except ValueError as error:
                raise ValueError(f"schema.tables.{name}: {error}") from error
        return tables

    def encoders(self, day: date | None) -> Encoders:
        """Returns the fitted encoders."""
        return Encoders(
            self._tables(lambda name, policy, counts: policy.fit(counts, day)),
            {name: self._scale(name) for name in self.part.numbers},
            {name: self._vector_scale(name) for name in self.part.vectors},
        )

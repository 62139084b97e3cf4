"""Fits the encoders of ids and numbers in one pass over the training files."""

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.content.vector_scales import VectorMoments, VectorScale
from mail_torchrec.data.content.vector_values import vector_values
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.history import HistoryLimits
from mail_torchrec.data.ids.counts import IdCounts
from mail_torchrec.data.ids.policy import IdEncoder, IdPolicy, NewOwners
from mail_torchrec.data.numeric import Moments, numeric_values
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.utils.progress import progress_bar


class RowObserver(Protocol):
    """Something else that is to be learnt in the same pass."""

    def add(self, table: pa.Table, limits: HistoryLimits, file: str, /) -> None:
        """Adds the rows of one row group."""


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
    return _fitter_of(source, schema, cold_start, observers, progress=progress).encoders(day)


def update_encoders(
    source: Source,
    schema: Schema,
    cold_start: ColdStartSettings,
    parent: Encoders,
    day: date | None,
    *,
    observers: Sequence[RowObserver] = (),
    progress: bool = False,
) -> tuple[Encoders, dict[str, NewOwners]]:
    """Updates the encoders of a run that is continued on other files.

    Each table's policy decides which ids have rows; the scales of numbers and vectors stay as they
    are.

    Args:
        source: the new training files.
        schema: their columns, and the id policies of the tables.
        cold_start: settings of the simulation.
        parent: encoders of the run that is continued; they are not changed.
        day: of the new files, by which ids expire; None where none is known.
        observers: get every row group too.
        progress: show a progress bar.

    Returns:
        The encoders, and the rows of each table that have new owners.

    Raises:
        ValueError: a bad value in a column of numbers or vectors, or ids of another type.
    """
    fitter = _fitter_of(source, schema, cold_start, observers, progress=progress)
    tables = fitter.updated_tables(parent, day)
    owners = {name: encoder.new_owners(parent.tables[name]) for name, encoder in tables.items()}
    return Encoders(tables, parent.scales, parent.vectors), owners


def _fitter_of(
    source: Source,
    schema: Schema,
    cold_start: ColdStartSettings,
    observers: Sequence[RowObserver],
    *,
    progress: bool,
) -> "_Fitter":
    """Reads all row groups."""
    fitter = _Fitter(schema, cold_start, observers)
    bar = progress_bar(
        source.row_groups,
        desc="vocabularies",
        unit="row group",
        disable=not progress,
    )
    for group in bar:
        file = source.file(group)
        try:
            fitter.add(source.pieces(group), file)
        except ValueError:
            fitter.add([source.whole(group)], file)  # with the row's number in the row group
            raise
    return fitter


class _Fitter:
    """Counts and sums of the row groups read so far."""

    def __init__(
        self, schema: Schema, cold_start: ColdStartSettings, observers: Sequence[RowObserver]
    ) -> None:
        self._schema, self._cold_start, self._observers = schema, cold_start, observers
        self._policies = {name: schema.id_policy(name) for name in schema.table_names}
        self._counts = {name: IdCounts() for name in schema.table_names}
        self._moments = {name: Moments() for name in schema.numeric()}
        self._vectors = {
            name: VectorMoments(schema.columns[name].length) for name in schema.vectors()
        }

    def add(self, tables: Iterable[pa.Table], file: str) -> None:
        """Adds the rows of one row group, in several tables."""
        numbers: dict[str, list[Any]] = {name: [] for name in self._moments}
        for table in tables:
            self._add_ids(table, file)
            self._add_vectors(table, file)
            for name, parts in numbers.items():
                column, transform = (
                    self._schema.file_column(name),
                    self._schema.columns[name].transform,
                )
                parts.append(numeric_values(table[column], transform, file=file, name=column))
        for name, parts in numbers.items():
            self._moments[name].add(np.concatenate(parts))

    def _add_ids(self, table: pa.Table, file: str) -> None:
        schema = self._schema
        key = schema.file_column(schema.group_key)
        keys = plain_ids(table[key], file=file, name=key)
        limits = HistoryLimits.simulated(schema, keys, self._cold_start)
        for observer in self._observers:
            observer.add(table, limits, file)
        for name in schema.id_columns:
            if self._policies[schema.table_of(name)].needs_counts:
                self._counts[schema.table_of(name)].add(limits.shown_ids(table, name, file)[0])

    def _add_vectors(self, table: pa.Table, file: str) -> None:
        for name, moments in self._vectors.items():
            column = self._schema.file_column(name)
            vectors = vector_values(
                table[column], moments.dim, file=file, name=column, rows="of its row group"
            )
            moments.add(vectors)

    def _vector_scale(self, name: str) -> VectorScale:
        moments = self._vectors[name]
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
        for name, policy in self._policies.items():
            try:
                tables[name] = build(name, policy, self._counts[name])
            except ValueError as error:
                raise ValueError(f"schema.tables.{name}: {error}") from error
        return tables

    def encoders(self, day: date | None) -> Encoders:
        """Returns the fitted encoders."""
        return Encoders(
            self._tables(lambda name, policy, counts: policy.fit(counts, day)),
            {name: moments.scale() for name, moments in self._moments.items()},
            {name: self._vector_scale(name) for name in self._vectors},
        )

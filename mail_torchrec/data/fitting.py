"""Fits the encoders of ids and numbers in one pass over the training files."""

import pyarrow as pa

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.history import HistoryLimits
from mail_torchrec.data.ids.counts import IdCounts
from mail_torchrec.data.numeric import Moments, numeric_values
from mail_torchrec.data.parquet.arrow import plain_ids
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.utils.progress import progress_bar


def fit_encoders(
    source: Source, schema: Schema, cold_start: ColdStartSettings, *, progress: bool = False
) -> Encoders:
    """Counts the ids of every table whose policy needs it, and sums every numeric column.

    Behaviours that the simulated cold start hides are not counted, so that hidden ids stay out of
    the vocabularies too.

    Args:
        source: training files.
        schema: their columns, and the id policies of the tables.
        cold_start: settings of the simulation.
        progress: show a progress bar.

    Raises:
        ValueError: a bad value in a numeric column; columns of different types on one table.
    """
    fitter = _Fitter(schema, cold_start)
    bar = progress_bar(
        source.row_groups,
        desc="vocabularies",
        unit="row group",
        disable=not progress,
    )
    for group in bar:
        fitter.add(source.read(group), source.file(group))
    return fitter.encoders()


class _Fitter:
    """Counts and sums of the row groups read so far."""

    def __init__(self, schema: Schema, cold_start: ColdStartSettings) -> None:
        self._schema, self._cold_start = schema, cold_start
        self._policies = {name: schema.id_policy(name) for name in schema.table_names}
        self._counts = {name: IdCounts() for name in schema.table_names}
        self._moments = {name: Moments() for name in schema.numeric()}

    def add(self, table: pa.Table, file: str) -> None:
        """Adds the rows of one row group."""
        schema = self._schema
        key = schema.file_column(schema.group_key)
        keys = plain_ids(table[key], file=file, name=key)
        limits = HistoryLimits.simulated(schema, keys, self._cold_start)
        for name in schema.id_columns:
            if self._policies[schema.table_of(name)].needs_counts:
                self._count(name, limits.shown_ids(table, name, file)[0], file)
        for name, moments in self._moments.items():
            column, transform = schema.file_column(name), schema.columns[name].transform
            moments.add(numeric_values(table[column], transform, file=file, name=column))

    def encoders(self) -> Encoders:
        """Returns the fitted encoders."""
        return Encoders(
            {name: policy.fit(self._counts[name]) for name, policy in self._policies.items()},
            {name: moments.scale() for name, moments in self._moments.items()},
        )

    def _count(self, name: str, ids: pa.Array, file: str) -> None:
        table = self._schema.table_of(name)
        counts = self._counts[table]
        if counts.value_type not in (None, ids.type):
            raise ValueError(
                f"{file}: column '{self._schema.file_column(name)}' looks up table '{table}' with "
                f"{ids.type} ids, other columns or files with {counts.value_type}; "
                "cast one, or give the column a table of its own"
            )
        counts.add(ids)

"""What the training data taught about values: a vocabulary a table, a mean and a scale a numeric column.

Built once from the training files, saved beside the model, and loaded by whatever scores with it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from mail_torchrec.data.cold_start import ColdStartSettings, hidden_users
from mail_torchrec.data.schema import Group, Ids, Kind, Schema
from mail_torchrec.data.source import Source
from mail_torchrec.data.values import Floats, list_parts, numbers, plain_ids
from mail_torchrec.data.vocabulary import HashedIds, IdEncoder, Vocabulary, count_values, plain_chunk, vocabulary_from_counts


@dataclass(frozen=True)
class Scale:
    """How a numeric column is standardised."""

    mean: float
    deviation: float

    def apply(self, values: npt.NDArray[np.float64]) -> Floats:
        """Standardised values; a missing one (NaN) becomes 0, the training mean."""
        return np.nan_to_num((values - self.mean) / self.deviation, nan=0.0).astype(np.float32)


@dataclass(frozen=True)
class Encoders:
    """The id encoder of every table and the scale of every numeric column."""

    tables: dict[str, IdEncoder]
    scales: dict[str, Scale]

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of every table."""
        return {name: encoder.num_rows for name, encoder in self.tables.items()}

    def save(self, folder: Path) -> None:
        """Writes one Parquet file a vocabulary and one JSON file for the scales."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, encoder in self.tables.items():
            if isinstance(encoder, Vocabulary):
                pq.write_table(pa.table({"value": encoder.values, "count": encoder.counts}), folder / f"{name}.parquet")
        scales = {name: {"mean": scale.mean, "deviation": scale.deviation} for name, scale in self.scales.items()}
        (folder / "scales.json").write_text(json.dumps(scales, indent=2) + "\n")

    @staticmethod
    def load(folder: Path, schema: Schema) -> "Encoders":
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: a file is missing.
        """
        try:
            scales = {name: Scale(**scale) for name, scale in json.loads((folder / "scales.json").read_text()).items()}
            return Encoders({name: _load_table(folder, name, schema) for name in schema.table_names}, scales)
        except FileNotFoundError as error:
            raise ValueError(f"{folder} should hold the vocabularies of a run: {error}; was the run directory copied whole?") from error


def _load_table(folder: Path, name: str, schema: Schema) -> IdEncoder:
    if schema.table(name).ids is Ids.HASH:
        return _hashed(name, schema)
    table = pq.read_table(folder / f"{name}.parquet")
    return Vocabulary(plain_chunk(table["value"]), table["count"].to_numpy().astype(np.int64))


def _hashed(name: str, schema: Schema) -> HashedIds:
    rows = schema.table(name).rows
    assert rows is not None
    return HashedIds(name, rows)


def fit_encoders(source: Source, schema: Schema, cold_start: ColdStartSettings, *, progress: bool = False) -> Encoders:
    """One pass over the training files: counts the ids of every vocabulary table, sums the numbers of every numeric column.

    Behaviours that the simulated cold start hides are not counted: what is hidden is hidden from the vocabulary too.

    Raises:
        ValueError: a bad value in a numeric column; columns of different types on one table.
    """
    counts: dict[str, pa.Table] = {}
    sums = {name: np.zeros(3) for name in schema.numeric()}
    for group in tqdm(source.row_groups, desc="vocabularies", unit="row group", disable=not progress, leave=False):
        table = source.read(group)
        hidden = _hidden(table, schema, cold_start)
        for name in schema.id_columns:
            if schema.table(schema.table_of(name)).ids is Ids.VOCABULARY:
                _count(counts, schema, name, table if schema.columns[name].group is not Group.BEHAVIOUR else table.filter(~hidden))
        for name, total in sums.items():
            column = schema.file_column(name)
            values = numbers(table[column], schema.columns[name].transform, file=source.file(group), name=column)
            total += [np.count_nonzero(~np.isnan(values)), np.nansum(values), np.nansum(values**2)]
    tables: dict[str, IdEncoder] = {name: _encoder(name, schema, counts) for name in schema.table_names}
    return Encoders(tables, {name: _scale(*total) for name, total in sums.items()})


def _hidden(table: pa.Table, schema: Schema, cold_start: ColdStartSettings) -> npt.NDArray[np.bool_]:
    if cold_start.oracle:
        return np.zeros(len(table), dtype=np.bool_)
    return hidden_users(plain_ids(table[schema.file_column(schema.group_key)]), cold_start)


def _count(counts: dict[str, pa.Table], schema: Schema, name: str, table: pa.Table) -> None:
    column = table[schema.file_column(name)]
    ids = list_parts(column)[0] if schema.columns[name].kind is Kind.LIST else plain_ids(column)
    target = schema.table_of(name)
    previous = counts.get(target)
    if previous is not None and previous["value"].type != ids.type:
        raise ValueError(
            f"column '{name}' looks up table '{target}' with {ids.type} ids, other columns or files with {previous['value'].type}; cast one, or give it its own table"
        )
    counts[target] = count_values(previous, ids)


def _encoder(name: str, schema: Schema, counts: dict[str, pa.Table]) -> IdEncoder:
    settings = schema.table(name)
    if settings.ids is Ids.HASH:
        return _hashed(name, schema)
    return vocabulary_from_counts(counts[name], min_count=settings.min_count, max_rows=settings.rows)


def _scale(count: float, total: float, squares: float) -> Scale:
    mean = total / max(count, 1)
    variance = max(squares / max(count, 1) - mean**2, 0.0)
    return Scale(float(mean), math.sqrt(variance) or 1.0)

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

from mail_torchrec.data.cold_start import ColdStartSettings, hidden_users, most_behaviours
from mail_torchrec.data.ids.vocabulary import (
    HashedIds,
    IdEncoder,
    Vocabulary,
    count_values,
    vocabulary_from_counts,
)
from mail_torchrec.data.parquet.arrow import (
    Floats,
    Ints,
    list_lengths,
    newest_ids,
    numbers,
    one_chunk,
    plain_ids,
)
from mail_torchrec.data.parquet.source import Source
from mail_torchrec.data.schema.schema import Group, Ids, Kind, Schema
from mail_torchrec.utils.logging import bar_interval


@dataclass(frozen=True)
class Scale:
    """How a numeric column is standardised."""

    mean: float
    deviation: float

    def apply(self, values: npt.NDArray[np.float64]) -> Floats:
        """Standardised values, within the range of float32; a missing one (NaN) becomes 0, the training mean."""
        largest = float(np.finfo(np.float32).max)
        return (
            np.nan_to_num((values - self.mean) / self.deviation, nan=0.0)
            .clip(-largest, largest)
            .astype(np.float32)
        )


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
                pq.write_table(
                    pa.table({"value": encoder.values, "count": encoder.counts}),
                    folder / f"{name}.parquet",
                )
        scales = {
            name: {"mean": scale.mean, "deviation": scale.deviation}
            for name, scale in self.scales.items()
        }
        (folder / "scales.json").write_text(json.dumps(scales, indent=2) + "\n")

    @staticmethod
    def load(folder: Path, schema: Schema) -> "Encoders":
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: a file is missing.
        """
        try:
            scales = {
                name: Scale(**scale)
                for name, scale in json.loads((folder / "scales.json").read_text()).items()
            }
            return Encoders(
                {name: _load_table(folder, name, schema) for name in schema.table_names}, scales
            )
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} should hold the vocabularies of a run: {error}; was the run directory "
                "copied whole?"
            ) from error


def _load_table(folder: Path, name: str, schema: Schema) -> IdEncoder:
    if schema.table(name).ids is Ids.HASH:
        return _hashed(name, schema)
    table = pq.read_table(folder / f"{name}.parquet")
    return Vocabulary(one_chunk(table["value"]), table["count"].to_numpy().astype(np.int64))


def _hashed(name: str, schema: Schema) -> HashedIds:
    rows = schema.table(name).rows
    assert rows is not None
    return HashedIds(name, rows)


def fit_encoders(
    source: Source, schema: Schema, cold_start: ColdStartSettings, *, progress: bool = False
) -> Encoders:
    """One pass over the training files: counts the ids of every vocabulary table, sums the numbers of every numeric column.

    Behaviours that the simulated cold start hides are not counted: what is hidden is hidden from
    the vocabulary too.

    Raises:
        ValueError: a bad value in a numeric column; columns of different types on one table.
    """
    counts: dict[str, pa.Table] = {}
    moments = {name: _Moments() for name in schema.numeric()}
    bar = tqdm(
        source.row_groups,
        desc="vocabularies",
        unit="row group",
        disable=not progress,
        leave=False,
        mininterval=bar_interval(),
    )
    for group in bar:
        table, file = source.read(group), source.file(group)
        most_R = _most_behaviours(table, schema, cold_start, file)
        for name in schema.id_columns:
            if schema.table(schema.table_of(name)).ids is Ids.VOCABULARY:
                _count(counts, schema, name, file, file_ids(table, schema, name, file, most_R)[0])
        for name in moments:
            column = schema.file_column(name)
            moments[name].add(
                numbers(table[column], schema.columns[name].transform, file=file, name=column)
            )
    tables: dict[str, IdEncoder] = {
        name: _encoder(name, schema, counts) for name in schema.table_names
    }
    return Encoders(tables, {name: moment.scale() for name, moment in moments.items()})


def file_ids(
    table: pa.Table, schema: Schema, name: str, file: str, most_R: Ints
) -> tuple[pa.Array, Ints]:
    """The ids of a column as training sees them: lists cut to their newest, behaviours also to what each row may show (``most_R``).

    Returns:
        The ids end to end, and how many there are a row.

    Raises:
        ValueError: an unsigned id above the range of int64.
    """
    file_column = schema.file_column(name)
    if schema.columns[name].kind is not Kind.LIST:
        return plain_ids(table[file_column], file=file, name=file_column), np.ones(
            len(table), dtype=np.int64
        )
    return newest_ids(
        table[file_column], most_ids(schema, name, most_R), file=file, name=file_column
    )


def most_ids(schema: Schema, name: str, most_R: Ints) -> int | Ints:
    """The most ids of a list column that training sees: the column's limit, of behaviours also what each row may show (``most_R``)."""
    column = schema.columns[name]
    return (
        np.minimum(most_R, column.max_length)
        if column.group is Group.BEHAVIOUR
        else column.max_length
    )


@dataclass(frozen=True)
class Misaligned:
    """A row whose actions are not as many as the items that they are on; the columns are the files'."""

    row: int
    items: str
    actions: str
    num_items: int
    num_actions: int

    def __str__(self) -> str:
        return (
            f"column '{self.actions}' should be as long as '{self.items}' in every row, received "
            f"{self.num_actions} actions on "
            f"{self.num_items} items"
        )


def misaligned(table: pa.Table, schema: Schema) -> Misaligned | None:
    """The first such row of the first such sequence."""
    for sequence in schema.sequences:
        if (action := schema.action_of(sequence)) is None:
            continue
        items, actions = schema.file_column(sequence), schema.file_column(action)
        num_items, num_actions = (list_lengths(table[column]) for column in (items, actions))
        if len(wrong := np.flatnonzero(num_items != num_actions)):
            row = int(wrong[0])
            return Misaligned(row, items, actions, int(num_items[row]), int(num_actions[row]))
    return None


def _most_behaviours(
    table: pa.Table, schema: Schema, cold_start: ColdStartSettings, file: str
) -> Ints:
    name = schema.file_column(schema.group_key)
    return most_behaviours(
        hidden_users(plain_ids(table[name], file=file, name=name), cold_start), cold_start
    )


def _count(
    counts: dict[str, pa.Table], schema: Schema, name: str, file: str, ids: pa.Array
) -> None:
    target = schema.table_of(name)
    previous = counts.get(target)
    if previous is not None and previous["value"].type != ids.type:
        raise ValueError(
            f"{file}: column '{schema.file_column(name)}' looks up table '{target}' with "
            f"{ids.type} ids, other columns or files with "
            f"{previous['value'].type}; cast one, or give the column a table of its own"
        )
    counts[target] = count_values(previous, ids)


def _encoder(name: str, schema: Schema, counts: dict[str, pa.Table]) -> IdEncoder:
    settings = schema.table(name)
    if settings.ids is Ids.HASH:
        return _hashed(name, schema)
    return vocabulary_from_counts(
        counts[name], min_count=settings.min_count, max_rows=settings.rows
    )


@dataclass
class _Moments:
    """Count, mean and sum of squared deviations of the numbers so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Joins in numbers, NaN left out (Chan, Golub and LeVeque 1979: no large sums are subtracted)."""
        values = values[~np.isnan(values)]
        if not len(values):
            return
        count, mean = self.count + len(values), float(values.mean())
        self.squares += (
            float(((values - mean) ** 2).sum())
            + (mean - self.mean) ** 2 * self.count * len(values) / count
        )
        self.mean += (mean - self.mean) * len(values) / count
        self.count = count

    def scale(self) -> Scale:
        """Mean and deviation; a deviation that is nothing but rounding counts as none, and none as 1."""
        deviation = math.sqrt(self.squares / max(self.count, 1))
        return Scale(
            self.mean,
            deviation
            if deviation > max(1e-12 * abs(self.mean), float(np.finfo(np.float32).tiny))
            else 1.0,
        )

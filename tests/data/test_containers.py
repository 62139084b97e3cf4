"""Rows that other writers stored otherwise give the figures of the plain form, or are refused."""

import re
import shutil
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from tests.support import plain
from tests.support.plain import Row
from tests.support.stored_rows import (
    PADDINGS,
    padded_rows,
    random_rows,
    store,
    tree_with_padding,
)

COLD_START = ColdStartSettings(hide_share=0.4, salt="s")
CASES = 5
"""Stored forms of one data set."""


def fuzz(max_cases: int) -> Any:
    """Draws so many cases; a failing one is not shrunk, which takes minutes: it has its seed."""
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    options = settings(max_examples=max_cases // CASES, deadline=None, phases=phases)
    return lambda test: options(given(st.integers(0, 2**60))(test))


def encode(folder: Path, schema: Schema) -> tuple[Chunk, dict[str, Any]]:
    """Fits on ``train`` and encodes ``test``, rows in the order of their ages."""
    train = Source(str(folder / "train"), schema)
    test = Source(str(folder / "test"), schema, train.types)
    encoders = fit_encoders(train, schema, COLD_START)
    encoder = ChunkEncoder(schema, encoders, COLD_START, 0)
    parts, ages = [], []
    for group in test.row_groups:
        table = test.read(group)
        parts.append(encoder(table, test.file(group)))
        ages += table["age"].fill_null(-1).to_pylist()
    values = {
        name: None if found.values is None else found.values.to_pylist()
        for name, found in encoders.tables.items()
    }
    return Chunk.concatenate(parts).take(np.argsort(ages)), values


def assert_equal(found: Chunk, expected: Chunk) -> None:
    """Compares all that a chunk holds; numbers are standardised in another order of rows."""
    for name, jagged in expected.lists.items():
        assert found.lists[name].lengths.tolist() == jagged.lengths.tolist(), name
        assert found.lists[name].values.tolist() == jagged.values.tolist(), name
    assert found.scalars_CR.tolist() == expected.scalars_CR.tolist()
    np.testing.assert_allclose(found.numeric_RN, expected.numeric_RN, rtol=1e-5, atol=1e-6)
    for field in ("labels_R", "users_R", "is_cold_R", "is_new_R", "is_cut_RL"):
        assert getattr(found, field).tolist() == getattr(expected, field).tolist(), field


def plain_form(folder: Path, train: list[Row], test: list[Row]) -> tuple[Chunk, dict[str, Any]]:
    plain.write(folder / "plain" / "train" / "a.parquet", train)
    plain.write(folder / "plain" / "test" / "a.parquet", test)
    return encode(folder / "plain", plain.schema())


def stored_form(folder: Path, train: list[Row], test: list[Row], random: Random) -> Schema:
    """Stores rows in any form, padded or not, and returns their schema."""
    columns = [name for name in PADDINGS if random.random() < 0.4]
    for name, rows in (("train", train), ("test", test)):
        shutil.rmtree(folder / name, ignore_errors=True)
        store(folder / name, padded_rows(rows, columns, random), random)
    return Schema.model_validate(tree_with_padding(columns))


def check_containers(folder: Path, random: Random) -> None:
    """Compares stored forms of one data set with its plain form."""
    train, test = random_rows(random), random_rows(random)
    expected, vocabularies = plain_form(folder, train, test)
    for _ in range(CASES):
        found, found_vocabularies = encode(folder, stored_form(folder, train, test, random))
        assert_equal(found, expected)
        assert found_vocabularies == vocabularies


def _text(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if value is None else str(value) for value in column.to_pylist()])


DAMAGES: dict[str, Any] = {
    "text": _text,
    "numbers": lambda column: pa.array([0.5] * len(column)),
    "times": lambda column: pa.array([0] * len(column), pa.timestamp("s")),
    "structs": lambda column: pa.array([{"a": 1}] * len(column)),
    "lists of lists": lambda column: pa.array([[[1]]] * len(column)),
    "lists of numbers": lambda column: pa.array([[0.5]] * len(column)),
    "no numbers": lambda column: pa.array([float("nan")] * len(column)),
    "big integers": lambda column: pa.array([2**64 - 1] * len(column), pa.uint64()),
    "bytes": lambda column: pa.array([b"\xff"] * len(column)),
    "nulls": lambda column: pa.nulls(len(column)),
    "other integers": lambda column: pa.array([2] * len(column)),
    "short lists": lambda column: pa.array([[1]] * len(column)),
    "missing": None,
    "twice": None,
}


def damage(folder: Path, random: Random) -> tuple[str, Path]:
    """Changes one column of one file; returns what was changed."""
    files = sorted(folder.glob("t*/**/*.parquet"))
    path = random.choice([file for file in files if pq.read_metadata(file).num_rows])
    file = pq.ParquetFile(path)
    table = pa.concat_tables(file.read_row_group(group) for group in range(file.num_row_groups))
    column, name = random.choice(table.column_names), random.choice(list(DAMAGES))
    index = table.column_names.index(column)
    if name == "missing":
        table = table.drop_columns(column)
    elif name == "twice":
        table = table.append_column(column, table[column])
    else:
        table = table.set_column(index, column, DAMAGES[name](table[column]))
    pq.write_table(table, path)
    return column, path


def check_damaged_columns(folder: Path, random: Random) -> None:
    """A changed column leaves the figures of the others alone, or is refused by its name."""
    train, test = random_rows(random), random_rows(random)
    expected, _ = plain_form(folder, train, test)
    for _ in range(CASES):
        schema = stored_form(folder, train, test, random)
        column, path = damage(folder, random)
        try:
            found, _ = encode(folder, schema)
        except ValueError as error:
            assert_names(str(error), column)
            continue
        assert len(found) == len(expected)
        if column not in ("user", "clicked", "age") and path.is_relative_to(folder / "test"):
            assert found.users_R.tolist() == expected.users_R.tolist()
            assert found.labels_R.tolist() == expected.labels_R.tolist()


def assert_names(message: str, column: str) -> None:
    """A refusal names a file, and the column or one that must agree with it."""
    together = [{"item", "history"}, {"history", "actions"}, {column}]
    names = set.union(*(names for names in together if column in names))
    assert re.search(r"\.parquet|schema\.columns", message), message
    assert any(f"'{name}'" in message or f".{name}" in message for name in names), message


@fuzz(100)
def test_any_container_gives_the_figures_of_the_plain_form(seed: int) -> None:
    with TemporaryDirectory() as folder:
        check_containers(Path(folder), Random(seed))


@fuzz(100)
def test_a_changed_column_is_read_or_refused_by_file_and_name(seed: int) -> None:
    with TemporaryDirectory() as folder:
        check_damaged_columns(Path(folder), Random(seed))

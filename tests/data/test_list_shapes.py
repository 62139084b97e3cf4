"""Padded lists are told, with the column, the length, the value and the remedy; others are not."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.list_shapes import ListShapes
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from tests.support.small_rows import SCHEMA, write_rows

LENGTH = 8
Lists = list[list[Any]]


def histories(lengths: list[int], text: bool) -> Lists:
    """Items 1 to 40, or their names."""
    draw = random.Random(3)
    rows = [[draw.randint(1, 40) for _ in range(length)] for length in lengths]
    return [[f"item {item}" for item in row] for row in rows] if text else rows


def padded(rows: Lists, value: object, *, before: bool = False) -> Lists:
    return [
        [value] * (LENGTH - len(row)) + row if before else row + [value] * (LENGTH - len(row))
        for row in rows
    ]


def warnings_of(
    folder: Path,
    lists: Lists,
    kind: pa.DataType | None = None,
    *,
    column: str = "tags",
    row_group_size: int = 20,
    **settings: Any,
) -> list[str]:
    """Fits a small data set whose column has these lists."""
    write_rows(folder / "a.parquet", len(lists), seed=1)
    table = pq.read_table(folder / "a.parquet")
    values = pa.array(lists, kind)
    table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table, folder / "a.parquet", row_group_size=row_group_size)
    columns = SCHEMA["columns"] | {column: SCHEMA["columns"][column] | settings}
    schema = Schema.model_validate(SCHEMA | {"columns": columns})
    shapes = ListShapes(schema)
    fit_encoders(Source(str(folder), schema), schema, ColdStartSettings(), observers=[shapes])
    return shapes.warnings()


MIXED = [0, 2, LENGTH, 5, 1, LENGTH, 7, 3, LENGTH, 0] * 6
"""Lengths of histories, of which three in ten are full."""
FIXED = pa.list_(pa.int64(), LENGTH)


@pytest.mark.parametrize(
    ("value", "before", "kind"),
    [
        (0, False, None),
        (0, True, None),
        (-1, False, pa.large_list(pa.int32())),
        (-1, True, None),
        (0, False, FIXED),
        (0, True, FIXED),
        ("", False, None),
        ("", True, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        ("<pad>", False, None),
    ],
)
def test_padding_is_told(
    tmp_path: Path, value: int | str, before: bool, kind: pa.DataType | None
) -> None:
    lists = padded(histories(MIXED, isinstance(value, str)), value, before=before)
    [warning] = warnings_of(tmp_path, lists, kind)
    end, text = "begin" if before else "end", f'"{value}"' if isinstance(value, str) else value
    assert f"column 'tags': every list has {LENGTH} values, and 70% of the 60 lists" in warning
    assert f"{end} with {text}. " in warning
    assert warning.endswith(f"set schema.columns.tags: {{..., padding: {text}}}")


def test_a_value_that_ends_every_list_is_told_whatever_else_it_is(tmp_path: Path) -> None:
    lists = [[0, row, 0] for row in range(60)]
    assert "100% of the 60 lists end with 0" in warnings_of(tmp_path, lists)[0]


def test_padding_is_told_where_the_first_row_groups_are_full(tmp_path: Path) -> None:
    lengths = sorted(MIXED, reverse=True)
    [warning] = warnings_of(tmp_path, padded(histories(lengths, False), 0), row_group_size=9)
    assert "lists end with 0" in warning


def test_configured_padding_is_not_told(tmp_path: Path) -> None:
    lists = padded(histories(MIXED, False), 0)
    assert warnings_of(tmp_path, lists, padding=0) == []


def test_actions_are_not_told_for_their_padding_is_their_sequences(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", 60, seed=1)
    table = pq.read_table(tmp_path / "a.parquet")
    for column in ("history", "actions"):
        values = pa.array(padded(histories(MIXED, False), 0))
        table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table, tmp_path / "a.parquet")
    schema = Schema.model_validate(SCHEMA)
    shapes = ListShapes(schema)
    source = Source(str(tmp_path), schema)
    fit_encoders(source, schema, ColdStartSettings(), observers=[shapes])
    [warning] = shapes.warnings()
    assert warning.startswith("column 'history'")


def test_other_lists_are_not_told(tmp_path: Path) -> None:
    random_values = np.random.default_rng(3)
    lists: dict[str, Lists] = {
        "other lengths": histories(MIXED, False),
        "full histories": histories([LENGTH] * 60, False),
        "few values": random_values.integers(0, 3, (60, LENGTH)).tolist(),
        "mostly one value": (random_values.random((60, LENGTH)) < 0.2).astype(int).tolist(),
        "pairs": [[row % 4, 10 + row % 2] for row in range(60)],
        "one value": [[0]] * 60,
        "empty": [[]] * 60,
        "one list is longer": [*padded(histories(MIXED[:-1], False), 0), [0] * (LENGTH + 1)],
    }
    kind = pa.list_(pa.int64())
    found = {name: warnings_of(tmp_path / name, rows, kind) for name, rows in lists.items()}
    assert {name: told for name, told in found.items() if told} == {}


def test_nulls_are_no_value(tmp_path: Path) -> None:
    lists = padded(histories(MIXED, False), None)
    assert warnings_of(tmp_path, lists, pa.list_(pa.int64())) == []

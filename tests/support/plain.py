"""Rows of a small schema as plain Python dicts, and a plain reference of their encoding.

The reference decides nothing about who is hidden: tests say which users are.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.schema.schema import Schema

Row = dict[str, Any]

TREE: dict[str, Any] = {
    "dim": 4,
    "columns": {
        "user": {"group": "group_key"},
        "clicked": {"group": "label"},
        "age": {"group": "attribute"},
        "city": {"group": "attribute"},
        "income": {"group": "attribute", "kind": "numeric"},
        "history": {"group": "behaviour", "kind": "list", "table": "item", "max_length": 4},
        "actions": {"group": "behaviour", "kind": "list", "action_of": "history", "max_length": 4},
        "hour": {"group": "context"},
        "item": {"group": "item"},
        "tags": {"group": "item", "kind": "list", "max_length": 3},
    },
}
MAX_LENGTHS = {"history": 4, "actions": 4, "tags": 3}
BEHAVIOURS = ("history", "actions")
TABLES = {
    "age": "age",
    "city": "city",
    "hour": "hour",
    "item": "item",
    "tags": "tags",
    "history": "item",
    "actions": "actions",
}
TYPES = pa.schema(
    [
        ("user", pa.int64()),
        ("clicked", pa.int64()),
        ("age", pa.int64()),
        ("city", pa.string()),
        ("income", pa.float64()),
        ("history", pa.list_(pa.int64())),
        ("actions", pa.list_(pa.int64())),
        ("hour", pa.int32()),
        ("item", pa.int64()),
        ("tags", pa.list_(pa.string())),
    ]
)


def schema() -> Schema:
    return Schema.model_validate(TREE)


def row(number: int = 0, **values: Any) -> Row:
    """A row like any other, but for its number (its ``age``) and the values given."""
    usual = {
        "user": number,
        "clicked": number % 2,
        "age": number,
        "city": "a",
        "income": 1.0,
        "history": [1, 2],
        "actions": [1, 1],
    }
    return usual | {"hour": 3, "item": 1, "tags": ["x"]} | values


def some_rows(number: int) -> list[Row]:
    """So many rows, every one different."""
    return [
        row(
            i,
            history=list(range(i % 7)),
            actions=[1] * (i % 7),
            item=i % 5,
            tags=["x", "y"][: i % 3],
        )
        for i in range(number)
    ]


def write(
    path: Path,
    rows: Sequence[Row],
    row_groups: Iterable[int] | None = None,
    types: pa.Schema = TYPES,
) -> None:
    """A Parquet file with row groups of these sizes (one by default)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), types)
    start = 0
    with pq.ParquetWriter(path, types) as writer:
        for size in [len(table)] if row_groups is None else row_groups:
            writer.write_table(table.slice(start, size))
            start += size
    assert start == len(rows)


@st.composite
def any_rows(draw: st.DrawFn, max_size: int = 12) -> list[Row]:
    """Nulls, sentinels, 64-bit ids, null and empty and long lists, null entries."""
    ids = st.none() | st.integers(-3, 5) | st.sampled_from([-124, 2**62, -(2**62)])
    rows = []
    for number in range(draw(st.integers(1, max_size))):
        history = draw(st.none() | st.lists(ids, max_size=7))
        actions = (
            None
            if history is None
            else draw(st.lists(st.integers(1, 3), min_size=len(history), max_size=len(history)))
        )
        texts = st.none() | st.sampled_from(["", "x", "日本", "z" * 40])
        tags = draw(st.none() | st.lists(texts, max_size=5))
        values = {
            "user": draw(st.integers(0, 4)),
            "city": draw(texts),
            "history": history,
            "actions": actions,
            "tags": tags,
        }
        rows.append(
            row(
                number,
                **values,
                item=draw(ids),
                hour=draw(st.none() | st.integers(0, 23)),
                income=draw(st.none() | st.floats(-9, 9)),
            )
        )
    return rows


def seen(row: Row, column: str, hidden: set[int]) -> list[Any]:
    """The ids that training sees: of a list the newest, of a hidden user's behaviours none."""
    value = row[column]
    if column not in MAX_LENGTHS:
        return [value]
    if value is None or (column in BEHAVIOURS and row["user"] in hidden):
        return []
    return list(value[-MAX_LENGTHS[column] :])


def vocabularies(rows: Sequence[Row], hidden: set[int]) -> dict[str, list[Any]]:
    """Returns the values of each table in the order of their rows."""
    counts: dict[str, Counter[Any]] = {table: Counter() for table in TABLES.values()}
    for row in rows:
        for column, table in TABLES.items():
            counts[table].update(value for value in seen(row, column, hidden) if value is not None)
    # Strings are ordered by their UTF-8 bytes.
    return {
        table: spread_evenly(
            [
                value
                for _, _, value in sorted(
                    (-n, str(v).encode() if isinstance(v, str) else v, v) for v, n in count.items()
                )
            ]
        )
        for table, count in counts.items()
    }


def spread_evenly(values: list[Any]) -> list[Any]:
    """Orders values, most frequent first, by k times the golden ratio, modulo 1, of the k-th."""
    return [
        values[k]
        for k in sorted(range(len(values)), key=lambda k: math.modf(k * (math.sqrt(5) - 1) / 2)[0])
    ]


def encoded(row: Row, column: str, values: dict[str, list[Any]], hidden: set[int]) -> list[int]:
    """Table rows: 1 for null, 0 for a value not in the vocabulary, else 2 and its place there."""
    known = values[TABLES[column]]
    return [
        1 if value is None else 2 + known.index(value) if value in known else 0
        for value in seen(row, column, hidden)
    ]


def numbers(batch: Batch, ages: Sequence[int]) -> list[int]:
    """The numbers of a batch's rows (those of weight 1), by the vocabulary of ``age``."""
    ages_U = batch.pooled["age"].values()
    found = (ages_U if batch.dedup is None else ages_U[batch.dedup.inverse_indices_B]).tolist()
    return [ages[found[i] - 2] for i in range(len(batch)) if batch.weights_B[i] == 1]

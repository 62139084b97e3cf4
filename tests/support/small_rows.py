"""A small data set with every kind of column, for tests that train."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mail_torchrec.data.reading.batch import Batch, RowSets

SCHEMA: dict[str, Any] = {
    "dim": 8,
    "columns": {
        "user": {"group": "group_key"},
        "clicked": {"group": "label"},
        "bought": {"group": "conversion"},
        "age": {"group": "attribute"},
        "city": {"group": "attribute"},
        "income": {"group": "attribute", "kind": "numeric"},
        "history": {"group": "behaviour", "kind": "list", "table": "item", "max_length": 6},
        "actions": {"group": "behaviour", "kind": "list", "action_of": "history", "max_length": 6},
        "hour": {"group": "context"},
        "item": {"group": "item"},
        "tags": {"group": "item", "kind": "list"},
    },
    "tables": {
        "actions": {"init_mean": 1.0, "init_range": 0.1},
        "item": {"init_range": 0.3},
        "age": {"init_range": 0.3},
    },
}


def write_rows(path: Path, num_rows: int, seed: int, *, row_group_size: int = 50) -> None:
    """Rows of users of whom a third has no history; labels depend on the item and the history."""
    random = np.random.default_rng(seed)
    users = random.integers(0, num_rows // 3 + 1, num_rows)
    lengths = np.where(users % 3 == 0, 0, 1 + users % 8)
    item = random.integers(0, 40, num_rows)
    clicked = (random.random(num_rows) < 0.2 + 0.6 * ((item + users) % 5 < 2)).astype(np.int64)
    bought = np.random.default_rng([seed, 1]).random(num_rows) < 0.2 + 0.6 * (
        users % 5 < 2
    )  # by age, with or without a click
    history = [((users[i] * 7 + np.arange(lengths[i]) * 3) % 40).tolist() for i in range(num_rows)]
    table = pa.table(
        {
            "user": users,
            "clicked": clicked,
            "bought": bought,
            "age": users % 5,
            "city": pa.array([None if user % 7 == 0 else f"city{user % 4}" for user in users]),
            "income": random.normal(size=num_rows),
            "history": history,
            "actions": [[1 + i % 3 for i in items] for items in history],
            "hour": random.integers(0, 24, num_rows),
            "item": item,
            "tags": [list(range(i % 3)) for i in item],
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


WITH_ID: dict[str, Any] = SCHEMA | {
    "columns": SCHEMA["columns"] | {"uid": {"group": "attribute", "column": "user"}}
}
"""The schema with the user's id as an attribute, as MetaEmb needs it."""


def baseline_tree(name: str, **options: Any) -> dict[str, dict[str, Any]]:
    """The sections of a baseline with BaseDNN."""
    tower = {"tower": "base_dnn", "tower_options": {"hidden_dims": [16, 8], "dropout": 0.0}}
    model = tower | {"zero_shot": None, "baseline": {"name": name} | options}
    return {"schema": WITH_ID if name == "meta_emb" else SCHEMA, "model": model}


def config_tree(root: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration for these rows: no dropout, so that a step is a function of its rows."""
    tree: dict[str, Any] = {
        "name": "small",
        "data": {"root": str(root)},
        "schema": SCHEMA,
        "model": {
            "tower": "dmr",
            "tower_options": {"num_negatives": 20, "hidden_dims": [16, 8], "match_weight": 0.5},
            "zero_shot": {
                "dropout": 0.0,
                "encoder_dims": [16, 12],
                "decoder_dims": [12],
                "attention_dim": 8,
            },
        },
        "train": {"batch_size": 32, "eval_batch_size": 64, "log_every": 2},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return tree


def make_cold(batch: Batch, cold: bool) -> None:
    """Makes all rows of a batch cold, or all of them warm."""
    batch.is_cold_B[:] = cold
    find_sets(batch)


def find_sets(batch: Batch) -> None:
    """Finds cold and warm rows and users again, after a change of a batch."""
    batch.sets = RowSets.of(batch.is_cold_B, batch.weights_B)
    if batch.dedup is not None:
        batch.dedup.sets = RowSets.of(batch.is_cold_U, batch.weights_U)

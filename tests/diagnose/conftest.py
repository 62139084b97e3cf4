"""A log in which it is planted what attributes, histories and content are worth."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mail_torchrec.diagnose import trees

NUM_USERS, NUM_ITEMS, NUM_TASTES = 900, 160, 4
SCHEMA: dict[str, Any] = {
    "user": {"group": "group_key"},
    "clicked": {"group": "label"},
    "age": {"group": "attribute"},
    "city": {"group": "attribute"},
    "seen": {"group": "behaviour", "kind": "list", "table": "item"},
    "hour": {"group": "context"},
    "item": {"group": "item"},
    "genre": {"group": "item"},
    "content": {"group": "item", "kind": "vector"},
}


def planted_log(seed: int = 0) -> dict[str, pa.Table]:
    """Makes training rows of two days, and test rows of a third one, of 3,000 rows each.

    ``age`` decides the taste of most users and nothing else does; a click likes a genre that
    is the user's taste, and items of good content. A tenth of the users has no history.
    """
    rng = np.random.default_rng(seed)
    # One taste is more frequent, so that its genre is too: trees find a cross by one of its sides.
    age, other = rng.choice(NUM_TASTES, (2, NUM_USERS), p=[0.5, 0.3, 0.1, 0.1])
    taste = np.where(rng.random(NUM_USERS) < 0.6, age, other)
    genre = rng.integers(NUM_TASTES, size=NUM_ITEMS)
    content = rng.standard_normal((NUM_ITEMS, 3)).astype(np.float32)
    seen = [
        rng.choice(NUM_ITEMS, rng.integers(8, 14), p=_liked(genre == taste[user])).tolist()
        if user % 10
        else []
        for user in range(NUM_USERS)
    ]
    tables = {}
    for part, days in (("train", (1, 2)), ("test", (3,))):
        count = 3_000 * len(days)
        users, items = rng.integers(NUM_USERS, size=count), rng.integers(NUM_ITEMS, size=count)
        likes = 4 * (genre[items] == taste[users]) + 2.5 * content[items, 0] - 2
        columns = {
            "user": users,
            "clicked": (rng.random(count) < 1 / (1 + np.exp(-likes))).astype(np.int64),
            "age": age[users],
            "city": rng.integers(6, size=count),
            "seen": [seen[user] for user in users],
            "hour": rng.integers(24, size=count),
            "item": items,
            "genre": genre[items],
            "content": content[items].tolist(),
            "day": np.sort(np.resize([f"2024-05-0{day}" for day in days], count)),
        }
        tables[part] = pa.table(columns)
    return tables


def _liked(is_liked: np.ndarray) -> np.ndarray:
    weights = np.where(is_liked, 8.0, 1.0)
    return np.asarray(weights / weights.sum())


def write_log(folder: Path, tables: dict[str, pa.Table], *dropped: str) -> Path:
    """Writes rows and their configuration, without some columns; returns the configuration."""
    columns = {name: column for name, column in SCHEMA.items() if name not in dropped}
    for part, table in tables.items():
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=1_000)
    tree = {
        "data": {"root": str(folder), "train": "train.parquet", "test": "test.parquet"},
        "schema": {"dim": 4, "columns": columns},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    return config


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted differences are large, and a few trees find them."""
    monkeypatch.setattr(trees, "MAX_ITERATIONS", 60)
    monkeypatch.setattr(trees, "SEEDS", (0,))
    monkeypatch.setattr(trees, "NUM_RESAMPLES", 60)

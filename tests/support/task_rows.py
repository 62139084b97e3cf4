"""Rows with labels of further tasks, some of them null, for tests that train."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.small_rows import SCHEMA, write_rows

TASK_LABELS: dict[str, Any] = {
    "bought_it": {"group": "task_label", "column": "bought"},
    "paid": {"group": "task_label"},
    "seconds": {"group": "task_label", "kind": "numeric"},
}
TASK_SCHEMA = SCHEMA | {"columns": SCHEMA["columns"] | TASK_LABELS}
TASKS: dict[str, Any] = {
    "click": {"label": "clicked", "weight": 0.7},
    "buy": {"label": "bought_it", "after": "click", "hidden_dims": [6]},
    "pay": {"label": "paid", "after": "buy", "hidden_dims": []},
    "like": {"label": "paid", "weight": 0.5, "hidden_dims": []},
    "watch": {"label": "seconds", "type": "weighted_logistic", "weight": 0.2, "scale": 5},
    "stay": {"label": "seconds", "type": "log_normal", "after": "click", "scale": 5},
}
"""A chain of three, a task of its own, and both ways to learn a number."""
MMOE: dict[str, Any] = {"name": "mmoe", "num_experts": 3, "hidden_dims": [8, 5]}
PLE: dict[str, Any] = {"name": "ple", "hidden_dims": [8]}


def write_task_rows(path: Path, num_rows: int, seed: int) -> None:
    """Writes the small rows, whose age decides who pays and how long it takes."""
    write_rows(path, num_rows, seed)
    add_task_labels(path, seed)


def add_task_labels(path: Path, seed: int) -> None:
    """Adds labels to the small rows of a file: a seventh of them null, some of the numbers 0."""
    table = pq.read_table(path)
    random, age = np.random.default_rng([seed, 2]), table["age"].to_numpy()
    paid = random.random(len(age)) < 0.2 + 0.6 * (age < 2)
    seconds = np.exp(random.normal(1 + 0.4 * age, 0.5)) * (random.random(len(age)) < 0.9)
    nulls = [np.arange(len(age)) % 7 == place for place in (0, 1)]
    table = table.append_column("paid", pa.array(paid.astype(np.int8), mask=nulls[0]))
    table = table.append_column("seconds", pa.array(seconds, mask=nulls[1]))
    pq.write_table(table, path, row_group_size=50)

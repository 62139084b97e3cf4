"""The small data set with weights of rows, positions, weights of the tags, and vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.small_rows import SCHEMA, write_rows
from tests.support.vector_rows import VECTORS, with_vectors

WEIGHTED: dict[str, Any] = SCHEMA | {
    "columns": SCHEMA["columns"]
    | {
        "weight": {"group": "weight"},
        "position": {"group": "position", "column": "place"},
        "tags": {"group": "item", "kind": "list", "weights": "relevance"},
        "relevance": {"group": "item", "kind": "weights"},
        "cities": {"group": "attribute", "kind": "list", "weights": "shares", "max_length": 2},
        "shares": {"group": "attribute", "kind": "weights"},
    }
    | VECTORS,
}


def write_weighted_rows(path: Path, num_rows: int, seed: int) -> pa.Table:
    """Rows of which some weigh 0, with positions from 1 to 8; a user's cities are always equal."""
    write_rows(path, num_rows, seed=seed)
    random, table = np.random.default_rng(seed), pq.read_table(path)
    users = table["user"].to_pylist()
    new = {
        "weight": pa.array(random.integers(0, 5, num_rows) / 2),
        "place": pa.array(random.integers(1, 9, num_rows)),
        "relevance": [random.integers(0, 4, len(tags)).tolist() for tags in table["tags"]],
        "cities": [[f"city{i}" for i in range(user % 4)] for user in users],
        "shares": [[0.5 * (user % 3)] * (user % 4) for user in users],
    }
    for name, values in new.items():
        table = table.append_column(name, pa.array(values))
    table = with_vectors(table, seed)
    pq.write_table(table, path, row_group_size=50)
    return table

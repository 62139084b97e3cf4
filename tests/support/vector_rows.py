"""Columns of vectors beside those of the small data set: of the item, of the user, of the row."""

from typing import Any

import numpy as np
import pyarrow as pa

from tests.support.small_rows import SCHEMA

VECTORS: dict[str, Any] = {
    "content": {"group": "item", "kind": "vector"},
    "profile": {"group": "attribute", "kind": "vector", "column": "taste"},
    "weather": {"group": "context", "kind": "vector"},
}
VECTOR_DIMS = {"content": 5, "profile": 3, "weather": 2}
VECTORED: dict[str, Any] = SCHEMA | {"columns": SCHEMA["columns"] | VECTORS}


def with_vectors(table: pa.Table, seed: int) -> pa.Table:
    """Appends a vector of each item, of each user (of some null), and of each row.

    The elements differ in mean and scale; the item's last one is the same for all.
    """
    by_item = np.random.default_rng(7).normal([0, 1, -2, 100, 3], [1, 2, 3, 50, 0], (2000, 5))
    by_user = np.random.default_rng(8).normal(size=(2000, 3))
    by_row = np.random.default_rng(seed).normal(5, 2, (len(table), 2))
    items, users = table["item"].to_pylist(), table["user"].to_pylist()
    content = [None if item % 11 == 0 else by_item[item].tolist() for item in items]
    taste = [None if user % 5 == 0 else by_user[user].astype(np.float16) for user in users]
    for name, values, kind in (
        ("content", content, pa.list_(pa.float32(), 5)),
        ("taste", taste, pa.list_(pa.float16())),
        ("weather", by_row.tolist(), pa.large_list(pa.float64())),
    ):
        table = table.append_column(name, pa.array(values, kind))
    return table

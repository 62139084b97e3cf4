"""Small rows and one configuration with every kind of column, table, sequence and task at once."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.sequence_rows import with_parts
from tests.support.small_rows import SCHEMA, config_tree
from tests.support.task_rows import MMOE, TASK_LABELS, TASKS, add_task_labels
from tests.support.weighted_rows import WEIGHTED, write_weighted_rows

_SEQUENCE = with_parts(
    "concat",
    match="shelf",
    action={"column": "actions", "table": "actions", "joined": False},
    gap={"column": "time", "age_of": "times", "age_unit": "hour", "table": "gaps"},
    hour={"column": "times", "part": "hour", "table": "hour"},
)
_DERIVED: dict[str, Any] = {
    "weekday": {"group": "context", "column": "time", "part": "weekday"},
    "city_weekday": {"group": "context", "cross": ["city", "weekday"]},
    "city_item": {"group": "item", "cross": ["city", "item"]},
    "item_age": {
        "group": "item",
        "kind": "numeric",
        "column": "time",
        "age_of": "published",
        "age_unit": "day",
        "transform": "log",
    },
    "price": {"group": "item", "kind": "numeric"},
    "price_bucket": {"group": "item", "column": "price"},
    "income_bucket": {"group": "attribute", "column": "income"},
}
_OTHERS = {
    name: column
    for name, column in WEIGHTED["columns"].items()
    if name not in SCHEMA["columns"] or name in ("tags", "cities")  # weighted here
}
SCHEMA_OF_ALL: dict[str, Any] = _SEQUENCE | {
    "columns": {name: column for name, column in _SEQUENCE["columns"].items() if name != "bought"}
    | _OTHERS
    | _DERIVED
    | TASK_LABELS,
    "tables": _SEQUENCE["tables"]
    | {
        "item": {"init_from": {"path": "items.parquet", "id": "item", "vector": "image"}},
        "gaps": {"ids": "buckets", "buckets": [1, 24, 168], "dim": 4},
        "price_bucket": {"ids": "buckets", "buckets": [2, 5], "dim": "auto"},
        "income_bucket": {"ids": "buckets", "buckets": 4},
        "city_item": {"ids": "hash", "rows": 50},
        "city_weekday": {"dim": 4},
    },
}


def write_every_kind(path: Path, num_rows: int, seed: int) -> None:
    """Writes rows for the configuration; a user's columns are equal in all rows of the user."""
    write_weighted_rows(path, num_rows, seed)
    add_task_labels(path, seed)
    table = pq.read_table(path)
    users, items = table["user"].to_pylist(), table["item"].to_pylist()
    begin = datetime(2024, 5, 1, tzinfo=UTC)
    times = [begin + timedelta(hours=7 * user, minutes=11) for user in users]
    new = {
        "time": pa.array(times, pa.timestamp("us", "UTC")),
        "times": [
            [time - timedelta(hours=(5 * k * k) % 300, minutes=k) for k in range(len(history))]
            for time, history in zip(times, table["history"].to_pylist(), strict=True)
        ],
        "published": pa.array(
            [None if i % 9 == 0 else begin - timedelta(days=i) for i in items],
            pa.timestamp("ms", "UTC"),
        ),
        "price": pa.array(
            [None if i % 8 == 0 else Decimal(i * 37 % 1000) / 100 for i in items],
            pa.decimal128(9, 2),
        ),
        "income": pa.array([None if user % 6 == 0 else user % 23 / 4 for user in users]),
    }
    for name, values in new.items():
        if name in table.column_names:
            table = table.drop_columns(name)
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path, row_group_size=50)


def write_data(root: Path, train_rows: int = 160, test_rows: int = 70) -> None:
    """Writes training and test rows, and the vectors that the items' table begins with."""
    for part, num_rows, seed in (("train/a", train_rows, 1), ("test/b", test_rows, 2)):
        write_every_kind(root / f"{part}.parquet", num_rows, seed)
    images = np.random.default_rng(3).normal(0, 0.3, (30, 8)).tolist()
    pq.write_table(pa.table({"item": list(range(30)), "image": images}), root / "items.parquet")


def every_kind(root: Path, **sections: Any) -> dict[str, Any]:
    """A configuration with everything at once, trained for an epoch."""
    model = config_tree(root)["model"] | {"tasks": TASKS, "experts": MMOE}
    given = {"schema": SCHEMA_OF_ALL, "model": model} | sections
    given["data"] = {"root": str(root), "group_by_user": True} | sections.get("data", {})
    return config_tree(root, **given)

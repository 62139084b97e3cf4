"""Rows with times, decimals and lists of times, and a schema that derives columns from them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.small_rows import SCHEMA

NOW = datetime(2024, 3, 31, 0, 30, tzinfo=UTC)
"""Half an hour before clocks in Berlin go forward."""
DERIVED: dict[str, Any] = SCHEMA | {
    "columns": SCHEMA["columns"]
    | {
        "gaps": {
            "group": "behaviour",
            "kind": "list",
            "action_of": "history",
            "max_length": 6,
            "column": "time",
            "age_of": "times",
            "age_unit": "hour",
        },
        "income_bucket": {"group": "attribute", "column": "income"},
        "local_hour": {
            "group": "context",
            "column": "time",
            "part": "hour",
            "zone": "Europe/Berlin",
        },
        "weekday": {"group": "context", "column": "time", "part": "weekday", "zone": "UTC"},
        "city_hour": {"group": "context", "cross": ["city", "local_hour"]},
        "city_item": {"group": "item", "cross": ["city", "item", "flag"]},
        "age": {"group": "attribute"},
        "item_age": {
            "group": "item",
            "kind": "numeric",
            "column": "time",
            "age_of": "published",
            "age_unit": "day",
            "time_unit": "second",
            "transform": "log",
        },
        "price": {"group": "item", "kind": "numeric"},
        "price_bucket": {"group": "item", "column": "price"},
        "since": {"group": "attribute", "kind": "numeric"},
    },
    "tables": {
        "gaps": {"ids": "buckets", "buckets": [1, 24, 168]},
        "income_bucket": {"ids": "buckets", "buckets": 4},
        "price_bucket": {"ids": "buckets", "buckets": [5]},
        "city_item": {"ids": "hash", "rows": 50},
    },
}
DERIVED["columns"] = {
    name: column for name, column in DERIVED["columns"].items() if name != "actions"
}
_TYPES = pa.schema(
    [
        ("user", pa.int64()),
        ("clicked", pa.int64()),
        ("bought", pa.bool_()),
        ("age", pa.int64()),
        ("city", pa.string()),
        ("income", pa.float64()),
        ("history", pa.list_(pa.int64())),
        ("times", pa.list_(pa.timestamp("ms", "Europe/Berlin"))),
        ("hour", pa.int64()),
        ("time", pa.timestamp("us", "Asia/Tokyo")),
        ("item", pa.int64()),
        ("tags", pa.list_(pa.int64())),
        ("flag", pa.bool_()),
        ("published", pa.int64()),
        ("price", pa.decimal128(9, 2)),
        ("since", pa.date32()),
    ]
)


def derived_rows(number: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows of which every seventh lacks each value that may be null."""
    rows = []
    for i in range(first, first + number):
        time = NOW + timedelta(minutes=37 * i)
        history = [(7 * i + 3 * k) % 40 for k in range(i % 9)]
        rows.append(
            {
                "user": i % 31,
                "clicked": int(i * i % 5 < 2),
                "bought": i % 3 == 0,
                "age": i % 5,
                "city": None if i % 7 == 0 else f"city{i % 4}",
                "income": None if i % 7 == 1 else (i * i % 23) / 4,
                "history": history,
                "times": [
                    None if (i + k) % 7 == 2 else time - timedelta(hours=(k * 13) % 50, minutes=i)
                    for k in range(len(history))
                ],
                "hour": i % 24,
                "time": time,
                "item": i % 40,
                "tags": [i % 3] * (i % 3),
                "flag": None if i % 7 == 4 else i % 2 == 0,
                "published": None if i % 7 == 5 else int(time.timestamp()) - 86_400 * (i % 11) - i,
                "price": None if i % 7 == 6 else Decimal(i * 37 % 1000) / 100,
                "since": None if i % 7 == 3 else (NOW - timedelta(days=i % 400)).date(),
            }
        )
    return rows


def write_derived_rows(
    path: Path, rows: Sequence[dict[str, Any]], row_group_size: int = 50
) -> None:
    """Writes rows to a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), _TYPES), path, row_group_size=row_group_size)

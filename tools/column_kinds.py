"""Kinds of columns, tables and tasks that ``bench_columns.py`` measures, on the shop's rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tools.content_gain import BEGUN, COLUMNS, CONTENT
from tools.shop import VECTOR_DIM

BASE = "base"
ROWS, LENGTH = "full.parquet", 20
_PARTS = {part: {"column": f"seen_{part}", "table": part} for part in ("item", "category", "brand")}
_LIST = {"group": "item", "kind": "list", "column": "seen_category", "max_length": LENGTH}
_WEIGHTS = {"group": "item", "kind": "weights", "column": "seen_weight"}
_TASKS = {
    "buy": {"label": "bought", "after": "click"},
    "spend": {"label": "spent", "type": "weighted_logistic"},
}
_LABELS = {
    "bought": {"group": "task_label"},
    "spent": {"group": "task_label", "kind": "numeric"},
}


@dataclass(frozen=True)
class Kind:
    """What a configuration has beside the base's."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    """Columns by name; None takes one of the base away."""
    tables: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] = field(default_factory=dict)
    """Other keys of the section."""
    model: Mapping[str, Any] = field(default_factory=dict)


def _sequence(join: str) -> Kind:
    clicks = _PARTS | {"join": join, "max_length": LENGTH}
    return Kind({"seen": None}, schema={"sequences": {"clicks": clicks}})


def _tasks(**experts: Any) -> Kind:
    return Kind(_LABELS, model={"tasks": _TASKS} | experts)


KINDS: dict[str, Kind] = {
    BASE: Kind(),
    "one more column of ids": Kind({"again": {"group": "item", "column": "brand"}}),
    "vector column": Kind(CONTENT),
    "init_from": Kind(tables=BEGUN),
    "group: weight": Kind({"weight": {"group": "weight"}}),
    "group: position": Kind({"position": {"group": "position"}}),
    "list, pooled": Kind({"listed": _LIST}),
    "list, weighted": Kind({"listed": _LIST | {"weights": "shares"}, "shares": _WEIGHTS}),
    "buckets": Kind(
        {"level": {"group": "item", "column": "price"}},
        {"level": {"ids": "buckets", "buckets": 20}},
    ),
    "cross": Kind(
        {"pair": {"group": "item", "cross": ["city", "item_id"]}},
        {"pair": {"ids": "hash", "rows": 20_000}},
    ),
    "part of a time": Kind({"weekday": {"group": "context", "column": "time", "part": "weekday"}}),
    "age": Kind(
        {
            "since": {"group": "item", "kind": "numeric", "column": "time", "age_of": "listed"}
            | {"age_unit": "day"}
        }
    ),
    "three parts, concat": _sequence("concat"),
    "three parts, sum": _sequence("sum"),
    "fields of two widths": Kind(tables={name: {"dim": 4} for name in ("category", "brand")}),
    "dim: auto": Kind(schema={"dim": "auto"}),
    "tasks, shared bottom": _tasks(),
    "tasks, MMoE": _tasks(experts={"name": "mmoe"}),
    "tasks, PLE": _tasks(experts={"name": "ple"}),
}
"""The base, and each new kind of column, table or task added to it."""
TOWERS: dict[str, dict[str, Any]] = {
    "base_dnn": {"hidden_dims": [64, 32]},
    "dmr": {"num_negatives": 256, "negatives": "uniform"},
}


def configuration(tower: str, kind: Kind, batch_size: int) -> dict[str, Any]:
    """Returns the tree of a configuration of the rows that :func:`write_rows` writes."""
    base = {name: column for name, column in COLUMNS.items() if name != "weight"}
    base["seen"] = base["seen"] | {"max_length": LENGTH}
    columns = {name: column for name, column in {**base, **kind.columns}.items() if column}
    return {
        "name": "columns",
        "data": {"train": ROWS, "test": ROWS},
        "schema": {"dim": VECTOR_DIM, "columns": columns, "tables": kind.tables, **kind.schema},
        "model": {"tower": tower, "tower_options": TOWERS[tower], "zero_shot": None, **kind.model},
        "train": {"batch_size": batch_size},
    }

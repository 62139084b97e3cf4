"""Schemas of the small rows with a sequence of several parts, and tables of other widths."""

from typing import Any

from tests.support.small_rows import SCHEMA


def with_parts(join: str, **sequence: Any) -> dict[str, Any]:
    """A sequence of items, their shelves and actions; shelves and ages are narrower than others."""
    columns = {
        name: column
        for name, column in SCHEMA["columns"].items()
        if name not in ("history", "actions")
    }
    parts = {
        "item": {"column": "history"},
        "shelf": "history",
        "action": {"column": "actions", "table": "actions"},
    }
    return SCHEMA | {
        "columns": columns | {"shelf": {"group": "item", "column": "item"}},
        "sequences": {"past": parts | {"join": join, "max_length": 6} | sequence},
        "tables": SCHEMA["tables"]
        | {"shelf": {"dim": 4, "init_range": 0.3}, "age": {"dim": "auto", "init_range": 0.3}}
        | {"city": {"dim": 4}},
    }


AS_AUTHORS = with_parts(
    "concat",
    match="shelf",
    action={"column": "actions", "table": "actions", "joined": False},
)
"""The match loss is about another part than the first, and actions are read by the tower alone."""

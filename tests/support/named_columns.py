"""A small data set whose columns and tables may bear any names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.embeddings import initial_weights

_ROWS = 96
_HISTORY, _ITEM = 5, 9
_FIRST_ROLES: list[dict[str, Any]] = [
    {"group": "group_key"},
    {"group": "label"},
    {"group": "conversion"},
    {"group": "attribute"},
    {"group": "attribute", "kind": "numeric"},
    {"group": "behaviour", "kind": "list", "max_length": 6},
    {"group": "behaviour", "kind": "list", "max_length": 6},
    {"group": "context"},
    {"group": "item", "kind": "numeric"},
    {"group": "item"},
    {"group": "item", "kind": "list"},
]
_MORE_ROLES: list[dict[str, Any]] = [
    {"group": "attribute"},
    {"group": "context"},
    {"group": "item"},
    {"group": "attribute", "kind": "list"},
]


def write_named_rows(root: Path, names: Sequence[str]) -> None:
    """Writes training and test rows whose values depend on a column's place, not on its name."""
    for part, seed in (("train", 1), ("test", 2)):
        (root / part).mkdir(parents=True)
        columns = {name: _values(place, seed) for place, name in enumerate(names)}
        pq.write_table(pa.table(columns), root / part / "a.parquet")


def named_tree(root: Path, names: Sequence[str], **sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration of these columns; each looks up the table that the next one names."""
    tree: dict[str, Any] = {
        "data": {"root": str(root)},
        "schema": {"dim": 4, "columns": _columns(names)},
        "model": {
            "tower": "dmr",
            "tower_options": {"num_negatives": 5, "hidden_dims": [8], "attention_dims": [4]},
            "multi_task": {},
            "zero_shot": {"encoder_dims": [8], "decoder_dims": [8], "attention_dim": 4},
        },
        "train": {"batch_size": 32, "eval_batch_size": 64, "tables": {"name": "adagrad"}},
    }
    return {name: tree.get(name, {}) | sections.get(name, {}) for name in {**tree, **sections}}


def table_names(names: Sequence[str]) -> list[str]:
    """The tables in the order of their columns, the output-side one last."""
    columns = Config.model_validate(named_tree(Path(), names)).schema_
    return [*columns.table_names, f"{columns.table_of(names[_HISTORY])}_output"]


def draw_by_place(monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> None:
    """Draws the initial weights of a table by its place, which else depend on its name."""
    place = {table: str(place) for place, table in enumerate(table_names(names))}
    draw = _BLOCK_GENERATOR

    def generator(table: str, seed: int, block: int, device: torch.device) -> torch.Generator:
        return draw(place[table], seed, block, device)

    monkeypatch.setattr(initial_weights, "_block_generator", generator)


_BLOCK_GENERATOR = initial_weights._block_generator


def _roles(count: int) -> list[dict[str, Any]]:
    more = (_MORE_ROLES[place % len(_MORE_ROLES)] for place in range(count - len(_FIRST_ROLES)))
    return [*_FIRST_ROLES, *more]


def _columns(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    tables = [*names[1:], names[0]]
    columns = {}
    for place, (name, role) in enumerate(zip(names, _roles(len(names)), strict=True)):
        is_id = role["group"] in ("attribute", "behaviour", "context", "item")
        columns[name] = dict(role)
        if is_id and role.get("kind") != "numeric":
            columns[name]["table"] = tables[_ITEM if place == _HISTORY else place]
    columns[names[_HISTORY + 1]]["action_of"] = names[_HISTORY]
    return columns


def _values(place: int, seed: int) -> Any:
    random, role = np.random.default_rng([seed, place]), _roles(place + 1)[place]
    if role["group"] in ("label", "conversion"):
        return random.integers(0, 2, _ROWS)
    if role.get("kind") == "numeric":
        return random.normal(size=_ROWS)
    if role["group"] == "behaviour":
        lengths = np.random.default_rng(seed).integers(0, 7, _ROWS)  # of items and actions
        return [random.integers(0, 30 if place == _HISTORY else 3, n).tolist() for n in lengths]
    if role.get("kind") == "list":
        return [random.integers(0, 9, n).tolist() for n in random.integers(0, 3, _ROWS)]
    return random.integers(0, 30, _ROWS)

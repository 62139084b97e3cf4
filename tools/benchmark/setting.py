"""The setting that everything is measured in: columns, tables, towers, and what a run changes of it."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mail_torchrec.config import Config, load_config

_ATTRIBUTES = [f"attribute_{number}" for number in range(1, 10)]


def base_tree(
    *, max_length: int = 100, dim: int = 32, table_rows: int | None = None
) -> dict[str, Any]:
    """MAIL-DMR in the paper's setting: 9 attributes, T behaviours with actions, the target item, its category, two context columns.

    Args:
        max_length: T.
        dim: d.
        table_rows: rows of the item table, hashed; None takes a vocabulary.
    """
    history: dict[str, Any] = {"group": "behaviour", "kind": "list", "max_length": max_length}
    columns: dict[str, Any] = {"user": {"group": "group_key"}, "clicked": {"group": "label"}}
    columns |= {name: {"group": "attribute"} for name in _ATTRIBUTES}
    columns |= {
        "history": history | {"table": "item"},
        "actions": history | {"action_of": "history"},
    }
    columns |= {
        "hour": {"group": "context"},
        "place": {"group": "context"},
        "item": {"group": "item"},
        "category": {"group": "item"},
    }
    tables: dict[str, Any] = {"actions": {"init_mean": 1.0}}
    options: dict[str, Any] = {}
    if table_rows is not None:
        tables["item"], options = {"ids": "hash", "rows": table_rows}, {"negatives": "uniform"}
    return {
        "name": "MAIL-DMR",
        "data": {"cold_start": {"hide_share": 0.4}},
        "schema": {"dim": dim, "columns": columns, "tables": tables},
        "model": {"tower": "dmr", "tower_options": options, "zero_shot": {"variant": "full"}},
        "train": {"batch_size": 1024},
    }


SMALL = (
    "schema.dim=8",
    "train.batch_size=32",
    "model.zero_shot.encoder_dims=[16, 8]",
    "model.zero_shot.decoder_dims=[16]",
)
"""A model that trains in no time, to see that all works."""


@dataclass(frozen=True)
class Variant:
    """The trainer with a few settings of its own."""

    name: str
    overrides: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str) -> "Variant":
        """``NAME:section.key=value,section.key=value``; commas within brackets belong to a value.

        Raises:
            ValueError: no name, or a setting without a value.
        """
        name, _, settings = text.partition(":")
        overrides = tuple(
            part.strip() for part in re.split(r",(?![^\[{]*[\]}])", settings) if part.strip()
        )
        if not name or any("=" not in override for override in overrides):
            raise ValueError(
                f"--variant should read NAME:section.key=value,section.key=value, received '{text}'"
            )
        return Variant(name, overrides)

    def with_settings(self, *overrides: str) -> "Variant":
        """The same with more settings, which hold above its own."""
        return replace(self, overrides=(*self.overrides, *overrides))


UNGROUPED = Variant("ungrouped")
GROUPED = Variant("grouped", ("data.group_by_user=true",))
_SAMPLE = ("model.zero_shot.loss_sample_share=0.1",)
UNGROUPED_SAMPLED, GROUPED_SAMPLED = (
    Variant("ungrouped, sampled", _SAMPLE),
    Variant("grouped, sampled", (*GROUPED.overrides, *_SAMPLE)),
)
"""A tenth of the old users rebuilt at each step: another training of the zero-shot tower, whose AUC
is compared too."""
DMR = Variant("grouped, DMR alone", (*GROUPED.overrides, "model.zero_shot=null"))
"""What MAIL's zero-shot tower is added to."""
DEFAULTS = (UNGROUPED, UNGROUPED_SAMPLED, GROUPED, GROUPED_SAMPLED, DMR)


@dataclass(frozen=True)
class Setting:
    """A configuration file, and overrides that hold for every side."""

    path: Path
    overrides: tuple[str, ...] = ()

    @staticmethod
    def written(folder: Path, tree: dict[str, Any], *overrides: str) -> "Setting":
        """A setting made of a tree, whose rows are in the same folder."""
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return Setting(path, (f"data.root={folder}", *overrides))

    def config(self, variant: Variant = UNGROUPED) -> Config:
        """The configuration of a side.

        Raises:
            ValueError: see ``config.py``.
        """
        return load_config(self.path, [*self.overrides, *variant.overrides])

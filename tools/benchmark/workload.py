"""Defines the workload of all measurements: columns, tables, towers, and variants of them."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from mail_torchrec.config import Config, load_config
from mail_torchrec.model.precision import has_native_bfloat16

_ATTRIBUTES = [f"attribute_{number}" for number in range(1, 10)]


def base_config_tree(
    *, max_length: int = 100, dim: int = 32, table_rows: int | None = None
) -> dict[str, Any]:
    """Makes the configuration of MAIL-DMR in the paper's setting.

    It has 9 attributes, T behaviours with actions, the target item, its category, and two context
    columns.

    Args:
        max_length: T.
        dim: dimension of all tables.
        table_rows: rows of the item table, hashed; None takes a vocabulary.
    """
    tables: dict[str, Any] = {"actions": {"init_mean": 1.0}}
    options: dict[str, Any] = {}
    if table_rows is not None:
        tables["item"], options = {"ids": "hash", "rows": table_rows}, {"negatives": "uniform"}
    return {
        "name": "MAIL-DMR",
        "data": {"cold_start": {"hide_share": 0.4}},
        "schema": {"dim": dim, "columns": _columns(max_length), "tables": tables},
        "model": {"tower": "dmr", "tower_options": options, "zero_shot": {"variant": "full"}},
        "train": {"batch_size": 1024},
    }


def _columns(max_length: int) -> dict[str, Any]:
    history = {"group": "behaviour", "kind": "list", "max_length": max_length}
    return {
        "user": {"group": "group_key"},
        "clicked": {"group": "label"},
        **{name: {"group": "attribute"} for name in _ATTRIBUTES},
        "history": history | {"table": "item"},
        "actions": history | {"action_of": "history"},
        "hour": {"group": "context"},
        "place": {"group": "context"},
        "item": {"group": "item"},
        "category": {"group": "item"},
    }


SMALL = (
    "schema.dim=8",
    "train.batch_size=32",
    "model.zero_shot.encoder_dims=[16, 8]",
    "model.zero_shot.decoder_dims=[16]",
)
"""Overrides of a tiny model, to check that everything runs."""


@dataclass(frozen=True)
class Variant:
    """A name and the overrides that a trainer differs by."""

    name: str
    overrides: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str) -> "Variant":
        """Parses ``NAME:section.key=value,section.key=value``.

        Commas within brackets belong to a value.

        Raises:
            ValueError: no name, or a key without a value.
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

    def with_overrides(self, *overrides: str) -> "Variant":
        """Returns the variant with more overrides, which take precedence over its own."""
        return replace(self, overrides=(*self.overrides, *overrides))


UNGROUPED = Variant("ungrouped")
GROUPED = Variant("grouped", ("data.group_by_user=true",))
_SAMPLE = ("model.zero_shot.loss_sample_share=0.1",)
UNGROUPED_SAMPLED = Variant("ungrouped, sampled", _SAMPLE)
GROUPED_SAMPLED = Variant("grouped, sampled", (*GROUPED.overrides, *_SAMPLE))
"""Zero-shot losses of a tenth of the old users at each step: another training of that tower, whose
AUC is compared too."""
DMR = Variant("grouped, DMR alone", (*GROUPED.overrides, "model.zero_shot=null"))
"""DMR without the zero-shot tower."""
DEFAULTS = (UNGROUPED, UNGROUPED_SAMPLED, GROUPED, GROUPED_SAMPLED, DMR)


def in_bfloat16(variant: Variant) -> Variant:
    """Returns the variant with the towers' products in bfloat16."""
    precise = variant.with_overrides("train.precision=bfloat16")
    return replace(precise, name=f"{variant.name}, bf16")


def default_variants(device: torch.device) -> list[Variant]:
    """Returns the variants of a bench: in bfloat16 too where the device has units for it."""
    lower = [in_bfloat16(variant) for variant in DEFAULTS if variant != UNGROUPED_SAMPLED]
    return [*DEFAULTS, *(lower if has_native_bfloat16(device) else [])]


@dataclass(frozen=True)
class Workload:
    """A configuration file, and overrides for all trainers."""

    path: Path
    overrides: tuple[str, ...] = ()
    vocabularies: Path | None = None
    """Folder of the encoders, fitted before; None fits them in every trainer."""

    @staticmethod
    def write(folder: Path, tree: dict[str, Any], *overrides: str) -> "Workload":
        """Writes a configuration into the folder of its rows."""
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return Workload(path, (f"data.root={folder}", *overrides))

    def config(self, variant: Variant = UNGROUPED) -> Config:
        """Loads the configuration of a variant.

        Raises:
            ValueError: see ``config.py``.
        """
        return load_config(self.path, [*self.overrides, *variant.overrides])

"""Builds the configuration of a method's run from the user's file and overrides."""

import json
from pathlib import Path

from mail_torchrec.config import Config, load_config, preset_overrides
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.reproduce.methods.method import TOWERS, Method

# Keys that the methods set themselves.
_EVERY_METHODS_KEYS = ("name", "train.seed", "train.save_predictions")
_ITEM_METHODS_KEYS = ("model.virtual_items", "data.cold_start.items.oracle")
_USER_METHODS_KEYS = (
    "model.tower",
    "model.zero_shot.variant",
    "model.baseline",
    "data.cold_start.oracle",
)


def resolve_config(
    method: Method, config_path: Path, overrides: tuple[str, ...], seed: int
) -> Config:
    """Builds the configuration of one run: the user's file and overrides, then the method's.

    Raises:
        ValueError: an unknown setting, a missing preset, or an override of a key that the method
            sets itself.
    """
    config = load_config(config_path, list(overrides))
    chosen = [
        f"name={json.dumps(method.name)}",
        f"train.seed={seed}",
        "train.save_predictions=true",
        *([] if method.is_for_items else _tower(TOWERS[method.tower], config)),
        *([] if method.is_for_items else _crosses(method, config)),
        *(_user_id(config.schema_) if method.user_id else []),
        *method.overrides,
        *(preset_overrides(method.preset) if method.preset else []),
    ]
    _check_own_keys(method, overrides)
    return load_config(config_path, [*overrides, *chosen])


def _check_own_keys(method: Method, overrides: tuple[str, ...]) -> None:
    own_keys = _ITEM_METHODS_KEYS if method.is_for_items else _USER_METHODS_KEYS
    for key in (*_EVERY_METHODS_KEYS, *own_keys):
        # A key below one of these would be lost, for a method sets the whole section.
        if any(f"{override.partition('=')[0]}.".startswith(f"{key}.") for override in overrides):
            raise ValueError(
                f"'{key}' is what the methods themselves set; leave it out (--method and "
                "--seeds choose the runs)"
            )


def _user_id(schema: Schema) -> list[str]:
    """Makes the group key's column an attribute too, unless it is one already."""
    key = schema.file_column(schema.group_key)
    if any(schema.file_column(name) == key for name in schema.names(Group.ATTRIBUTE)):
        return []
    return [
        f"schema.columns.{schema.group_key}_as_attribute={{group: attribute, column: "
        f"{json.dumps(key)}}}"
    ]


def _crosses(method: Method, config: Config) -> list[str]:
    """Turns the products on, with the configuration's options, or off."""
    if not method.has_crosses:
        return ["model.attribute_crosses=null"]
    return [] if config.model.attribute_crosses else ["model.attribute_crosses={}"]


def _tower(name: str, config: Config) -> list[str]:
    """Chooses a ranking tower; the configuration's options are kept for its own tower alone."""
    chosen = [f"model.tower={name}"]
    if name != config.model.tower:
        chosen.append("model.tower_options={}")
    if name == "emblr":  # one weight an id
        chosen += [
            "schema.dim=1",
            *(
                f"schema.tables.{table}.dim=1"
                for table, given in config.schema_.tables.items()
                if given.dim
            ),
        ]
    return chosen

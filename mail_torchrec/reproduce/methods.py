"""The methods that are compared, as data: what each changes in the user's configuration, and what it is measured against."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mail_torchrec.config import Config, load_config, preset_overrides
from mail_torchrec.data.schema.schema import Group, Schema

TOWERS = {
    "Emblr": "emblr",
    "BaseDNN": "base_dnn",
    "DMR": "dmr",
    "DeepFM": "deepfm",
    "DIN": "din",
    "Wide&Deep": "wide_deep",
}
"""Title of a ranking tower -> its name in the configuration."""

# A plain tower is plain, whatever remedies the user's configuration has: those belong to the MAIL
# methods.
_NO_ZERO_SHOT = (
    "model.zero_shot=null",
    "model.baseline=null",
    "model.behaviour_dropout=0",
    "model.cold_loss_weight=0",
    "model.new_user_tower=shared",
)
_MAIL = ("model.zero_shot.variant=full", "model.baseline=null")
_TOGETHER = ("data.group_by_user=true",)


@dataclass(frozen=True)
class Method:
    """One method of the comparison."""

    name: str
    tower: str
    """Title of its ranking tower. The plain tower is its base, the tower's oracle the bound of what
    it can win."""
    overrides: tuple[str, ...] = _NO_ZERO_SHOT
    """What it changes in the configuration, beside the tower."""
    preset: str | None = None
    """A file of ``presets/`` that comes on top."""
    user_id: bool = False
    """Whether the user's id is an attribute; it becomes one where the schema does not have it."""

    @property
    def base(self) -> str | None:
        """The method that its gains are counted from; None where it is one itself."""
        return None if self.name == self.tower else self.tower

    @property
    def file_name(self) -> str:
        """Its name as a part of paths."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.name)

    @property
    def oracle(self) -> str:
        """The same tower, the hidden behaviours given back."""
        return f"{self.tower} oracle"


def _mail(tower: str) -> Method:
    return Method(f"MAIL-{tower}", tower, _MAIL)


def _baseline(name: str) -> tuple[str, ...]:
    return *_NO_ZERO_SHOT, f"model.baseline={{name: {name}}}"


def _tuned(tower: str) -> Method:
    return Method(f"MAIL-{tower} tuned", tower, _MAIL, preset="tuned")


def _variant(name: str) -> Method:
    return Method(
        f"MAIL-{name.capitalize()}",
        "BaseDNN",
        (f"model.zero_shot.variant={name}", "model.baseline=null"),
    )


_PAPER = [
    Method("Emblr", "Emblr"),
    Method("LLAE", "Emblr", _baseline("llae")),
    Method("BaseDNN", "BaseDNN"),
    Method("MetaEmb", "BaseDNN", (*_baseline("meta_emb"), *_TOGETHER), user_id=True),
    _mail("BaseDNN"),
    Method("DMR", "DMR"),
    _mail("DMR"),
]
_NEW = [
    Method("BaseDNN + DropoutNet", "BaseDNN", (*_NO_ZERO_SHOT, "model.behaviour_dropout=0.5")),
    Method("BaseDNN + mean fill", "BaseDNN", _baseline("mean_fill")),
    Method(
        "BaseDNN + user id", "BaseDNN", (*_NO_ZERO_SHOT, *_TOGETHER), user_id=True
    ),  # all that MetaEmb has but the generator
    _tuned("BaseDNN"),
    _tuned("DMR"),
    *(
        method
        for tower in ("DeepFM", "DIN", "Wide&Deep")
        for method in (Method(tower, tower), _mail(tower))
    ),
]
_ORACLES = [
    Method(f"{tower} oracle", tower, (*_NO_ZERO_SHOT, "data.cold_start.oracle=true"))
    for tower in TOWERS
]
_ABLATIONS = [_variant("none"), _variant("single"), _variant("dual")]

METHODS = {method.name: method for method in [*_PAPER, *_NEW, *_ORACLES, *_ABLATIONS]}
"""Every method by name."""
TABLE_2 = [method.name for method in [*_PAPER, *_NEW, *_ORACLES]]
"""The paper's seven in its order, the new ones, and the bounds."""
TABLE_3 = ["BaseDNN", "MAIL-None", "MAIL-Single", "MAIL-Dual", "MAIL-BaseDNN", "BaseDNN oracle"]
"""The ablation study; MAIL-BaseDNN is what the paper calls MAIL-Base."""

METHODS_OF = {
    "table2": TABLE_2,
    "table3": TABLE_3,
    "figures": [name for name in METHODS if name.startswith("MAIL-") and name != "MAIL-None"],
    "warmup": [name for name in METHODS if METHODS[name].base is None or name.startswith("MAIL-")],
}
"""Section of the report -> the methods that it can show."""
_USUALLY = {"figures": ["MAIL-BaseDNN"], "warmup": ["BaseDNN", "MAIL-BaseDNN", "DMR", "MAIL-DMR"]}


def methods_of(section: str, chosen: Sequence[str]) -> list[str]:
    """The methods of a section: those that were chosen, else the usual ones.

    Raises:
        ValueError: a chosen method is not one that the section can show.
    """
    if unknown := [method for method in chosen if method not in METHODS_OF[section]]:
        raise ValueError(
            f"{section} has no method {unknown}; it has: {', '.join(METHODS_OF[section])}"
        )
    return [
        method
        for method in METHODS_OF[section]
        if method in (chosen or _USUALLY.get(section, METHODS_OF[section]))
    ]


_TAKEN = (
    "name",
    "train.seed",
    "train.save_predictions",
    "model.tower",
    "model.zero_shot.variant",
    "model.baseline",
    "data.cold_start.oracle",
)


def resolve(method: Method, config_path: Path, overrides: tuple[str, ...], seed: int) -> Config:
    """The configuration of one run: the user's file and overrides, then what the method is.

    Raises:
        ValueError: a setting that this version does not know, a missing preset, or an override of
            what the method sets itself.
    """
    config = load_config(config_path, list(overrides))
    chosen = [
        f"name={json.dumps(method.name)}",
        f"train.seed={seed}",
        "train.save_predictions=true",
        *_tower(TOWERS[method.tower], config),
        *(_user_id(config.schema_) if method.user_id else []),
        *method.overrides,
        *(preset_overrides(method.preset) if method.preset else []),
    ]
    for taken in _TAKEN:
        if any(override.partition("=")[0] == taken for override in overrides):
            raise ValueError(
                f"'{taken}' is what the methods themselves set; leave it out (--method and "
                "--seeds choose the runs)"
            )
    return load_config(config_path, [*overrides, *chosen])


def _user_id(schema: Schema) -> list[str]:
    """The column of the group key as an attribute too, unless it is one already."""
    key = schema.file_column(schema.group_key)
    if any(schema.file_column(name) == key for name in schema.names(Group.ATTRIBUTE)):
        return []
    return [
        f"schema.columns.{schema.group_key}_as_attribute={{group: attribute, column: "
        f"{json.dumps(key)}}}"
    ]


def _tower(name: str, config: Config) -> list[str]:
    """Chooses a ranking tower. The options of the configuration are those of its own tower and stay with it."""
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

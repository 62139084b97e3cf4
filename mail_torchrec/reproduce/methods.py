"""Defines the methods of the paper's tables as overrides of the user's configuration."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mail_torchrec.config import Config, load_config, preset_overrides
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

TOWERS = {
    "Emblr": "emblr",
    "BaseDNN": "base_dnn",
    "DMR": "dmr",
    "DeepFM": "deepfm",
    "DIN": "din",
    "Wide&Deep": "wide_deep",
}
CROSSES = " + crosses"
TOWERS |= {f"{title}{CROSSES}": TOWERS[title] for title in ("BaseDNN", "DMR", "DIN")}
"""Name in the configuration of each ranking tower, by its title in tables. One with products of
attributes and items is a tower by itself: a remedy should gain over it as well."""

# A plain tower has no cold-start method, whatever the user's configuration says: those belong to
# the MAIL methods.
_NO_ZERO_SHOT = (
    "model.zero_shot=null",
    "model.baseline=null",
    "model.behaviour_dropout=0",
    "model.cold_loss_weight=0",
    "model.new_user_tower=shared",
    *("model.virtual_flag=false", "model.mixing_strength=null"),
)
_MAIL = ("model.zero_shot.variant=full", "model.baseline=null")
_GROUPED_BY_USER = ("data.group_by_user=true",)


@dataclass(frozen=True)
class Method:
    """One method of the comparison."""

    name: str
    tower: str
    """Title of its ranking tower: the plain tower is its base, the oracle its upper bound."""
    overrides: tuple[str, ...] = _NO_ZERO_SHOT
    """Overrides of the configuration, beside the tower."""
    preset: str | None = None
    """A file of ``presets/`` whose settings are applied on top."""
    user_id: bool = False
    """Whether the user's id is an attribute; it is added where the schema does not have it."""

    @property
    def base(self) -> str | None:
        """The method that its gains are measured against; None where it is a base itself."""
        return None if self.name == self.tower else self.tower

    @property
    def has_crosses(self) -> bool:
        """True where its tower reads products of attributes and items."""
        return CROSSES in self.name

    @property
    def is_oracle(self) -> bool:
        """True where it shows the hidden behaviours, of which there must be some."""
        return self.name == self.oracle

    @property
    def file_name(self) -> str:
        """Its name as a part of paths."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.name)

    @property
    def oracle(self) -> str:
        """Name of the same tower with the hidden behaviours given back."""
        return f"{self.tower} oracle"

    @property
    def controls(self) -> list[str]:
        """Methods beside the base that a gain should be clear of too, the easiest one first.

        They are the mean fill, which does no more than to repair an empty input, and the same tower
        with crosses, which uses the attributes that a blind base leaves to its remedies.
        """
        controls = [f"{self.tower} + mean fill", f"{self.tower}{CROSSES}"]
        compared = self.base is not None and not self.is_oracle and self.name not in controls
        return [name for name in controls if compared and name in METHODS]


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
    Method("MetaEmb", "BaseDNN", (*_baseline("meta_emb"), *_GROUPED_BY_USER), user_id=True),
    _mail("BaseDNN"),
    Method("DMR", "DMR"),
    _mail("DMR"),
]
_NEW = [
    Method("BaseDNN + DropoutNet", "BaseDNN", (*_NO_ZERO_SHOT, "model.behaviour_dropout=0.5")),
    *(Method(f"{tower} + mean fill", tower, _baseline("mean_fill")) for tower in TOWERS),
    # All that MetaEmb has but the generator.
    Method("BaseDNN + user id", "BaseDNN", (*_NO_ZERO_SHOT, *_GROUPED_BY_USER), user_id=True),
    _tuned("BaseDNN"),
    _tuned("DMR"),
    Method("MAIL-BaseDNN + dropout", "BaseDNN", (*_MAIL, "model.behaviour_dropout=0.5")),
    *(
        method
        for tower in ("DeepFM", "DIN", "Wide&Deep")
        for method in (Method(tower, tower), _mail(tower))
    ),
    *(
        method
        for tower in TOWERS
        if CROSSES in tower
        for method in (Method(tower, tower.removesuffix(CROSSES)), _mail(tower))
    ),
]
_ORACLES = [
    Method(f"{tower} oracle", tower, (*_NO_ZERO_SHOT, "data.cold_start.oracle=true"))
    for tower in TOWERS
]
_SWITCHES = {
    "mixture": ("zero_shot.reconstruction_target=mixture", "zero_shot.virtual_length=predicted"),
    "ranking loss": ("zero_shot.ranking_weight=1",),
    "flag + dropout": ("virtual_flag=true", "behaviour_dropout=0.5"),
}
_SWITCHED = [
    Method(f"MAIL-{tower} + {name}", tower, (*_MAIL, *(f"model.{change}" for change in changes)))
    for tower in ("BaseDNN", "DIN")
    for name, changes in _SWITCHES.items()
]
_ABLATIONS = [_variant("none"), _variant("single"), _variant("dual")]

METHODS = {method.name: method for method in [*_PAPER, *_NEW, *_ORACLES, *_ABLATIONS, *_SWITCHED]}
"""Every method by name."""
TABLE_2 = [method.name for method in [*_PAPER, *_NEW, *_ORACLES]]
"""The paper's seven methods in its order, newer ones, and the oracles."""
TABLE_3 = ["BaseDNN", "MAIL-None", "MAIL-Single", "MAIL-Dual", "MAIL-BaseDNN", "BaseDNN oracle"]
"""The ablation study; MAIL-BaseDNN is the paper's MAIL-Base."""

SECTION_METHODS = {
    "table2": TABLE_2,
    "table3": TABLE_3,
    "figures": [name for name in METHODS if name.startswith("MAIL-") and name != "MAIL-None"],
    "warmup": [
        name
        for name in METHODS
        if (METHODS[name].base is None or name.startswith("MAIL-")) and CROSSES not in name
    ],
    "curve": list(METHODS),
}
"""Methods that each section of the report can show."""
_DEFAULT_METHODS = {
    "figures": ["MAIL-BaseDNN"],
    "warmup": ["BaseDNN", "MAIL-BaseDNN", "DMR", "MAIL-DMR"],
    "curve": [
        "BaseDNN",
        "BaseDNN + mean fill",
        "BaseDNN + crosses",
        "BaseDNN + DropoutNet",
        "MAIL-BaseDNN",
        "MAIL-BaseDNN tuned",
        "MAIL-BaseDNN + dropout",
        "BaseDNN oracle",
    ],
}


def section_methods(
    section: str, chosen: Sequence[str], cold_start: ColdStartSettings
) -> list[str]:
    """Selects the methods of a section: those that were chosen, else its default ones.

    Args:
        section: of the report.
        chosen: methods; none: the default ones, without the oracles where nothing is hidden.
        cold_start: settings of the user's configuration.

    Raises:
        ValueError: a chosen method is not one that the section can show.
    """
    if unknown := [method for method in chosen if method not in SECTION_METHODS[section]]:
        raise ValueError(
            f"{section} has no method {unknown}; it has: {', '.join(SECTION_METHODS[section])}"
        )
    wanted = chosen or _DEFAULT_METHODS.get(section, SECTION_METHODS[section])
    if not chosen and not cold_start.of_test.hide_share:
        oracles = [method for method in wanted if METHODS[method].is_oracle]
        wanted = [method for method in wanted if method not in oracles]
        if oracles:
            logger.info(
                "%s: data.cold_start.hide_share=0 hides nothing that oracles could show; left "
                "out: %s",
                section,
                ", ".join(oracles),
            )
    return [method for method in SECTION_METHODS[section] if method in wanted]


# Keys that the methods set themselves.
_METHOD_KEYS = (
    "name",
    "train.seed",
    "train.save_predictions",
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
        *_tower(TOWERS[method.tower], config),
        *_crosses(method, config),
        *(_user_id(config.schema_) if method.user_id else []),
        *method.overrides,
        *(preset_overrides(method.preset) if method.preset else []),
    ]
    for key in _METHOD_KEYS:
        if any(override.partition("=")[0] == key for override in overrides):
            raise ValueError(
                f"'{key}' is what the methods themselves set; leave it out (--method and "
                "--seeds choose the runs)"
            )
    return load_config(config_path, [*overrides, *chosen])


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

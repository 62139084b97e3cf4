"""Defines a method of the comparison and the ranking towers that it may stand on."""

import re
from dataclasses import dataclass

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
CONFIGURED = "configured model"
"""Base of the methods for new items, which stand on whatever model the configuration has."""

# A plain tower has no cold-start method, whatever the user's configuration says: those belong to
# the MAIL methods.
NO_REMEDY = (
    "model.zero_shot=null",
    "model.baseline=null",
    "model.behaviour_dropout=0",
    "model.cold_loss_weight=0",
    "model.new_user_tower=shared",
    *("model.virtual_flag=false", "model.mixing_strength=null"),
)
"""Overrides of a tower without any method for cold users."""


@dataclass(frozen=True)
class Method:
    """One method of the comparison."""

    name: str
    tower: str
    """Title of its ranking tower, or :data:`CONFIGURED`: without a remedy it is the base, with the
    hidden values given back the oracle, the upper bound."""
    overrides: tuple[str, ...] = NO_REMEDY
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
    def is_for_items(self) -> bool:
        """True where it is for new items: the configured model with something for their ids."""
        return self.tower == CONFIGURED

    @property
    def has_crosses(self) -> bool:
        """True where its tower reads products of attributes and items."""
        return CROSSES in self.name

    @property
    def is_oracle(self) -> bool:
        """True where it shows what is hidden, of which there must be some."""
        return self.name == self.oracle

    @property
    def file_name(self) -> str:
        """Its name as a part of paths."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.name)

    @property
    def oracle(self) -> str:
        """Name of the same tower with what is hidden given back."""
        return f"{self.tower} oracle"

    @property
    def controls(self) -> list[str]:
        """Methods beside the base that a gain should be clear of too, the easiest one first.

        They are the mean fill, which does no more than to repair an empty input, and the same tower
        with crosses, which uses the attributes that a blind base leaves to its remedies. The tuned
        preset has a tower for new users too, which may win without any virtual behaviours.
        """
        if self.base is None or self.is_oracle:
            return []
        controls = [f"{self.tower} + mean fill"]
        if (crosses := f"{self.tower}{CROSSES}") in TOWERS:
            controls.append(crosses)
        if self.preset is not None:
            controls.append(f"{self.tower} + own tower")
        return [] if self.name in controls else controls

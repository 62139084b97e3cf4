"""The search space of a sweep, from a YAML file: dotted names of settings, and their ranges."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from mail_torchrec.settings import Settings
from mail_torchrec.utils.safe_paths import read_document
from mail_torchrec.utils.unique_keys import parse_yaml

if TYPE_CHECKING:
    from optuna.trial import Trial

Value = bool | int | float | str | None


class Range(Settings):
    """Numbers between two bounds, whole ones where both bounds are whole and written so."""

    low: int | float
    high: int | float
    log: bool = False
    """Search the logarithm: each factor is as likely as another."""
    step: int | float | None = None
    """Distance of the values from one to the next; null: any, or 1 of whole numbers."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high or not math.isfinite(self.high - self.low):
            raise ValueError(f"low should be below high, received {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log wants bounds above 0, and no step")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step should be above 0, received {self.step}")
        return self

    def suggest(self, trial: "Trial", key: str) -> Value:
        """Lets a trial choose."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = int(self.step or 1)
            whole: int = trial.suggest_int(key, self.low, self.high, step=step, log=self.log)
            return whole
        number: float = trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)
        return number


class Choices(Settings):
    """One of some values."""

    choices: Annotated[list[Any], Field(min_length=1)]
    """Values of any kind that the setting takes, sections included."""

    def suggest(self, trial: "Trial", key: str) -> Value:
        """Lets a trial choose; what is no plain value stands as JSON in the study."""
        texts = [json.dumps(choice, sort_keys=True) for choice in self.choices]
        chosen: Value = json.loads(trial.suggest_categorical(key, texts))
        return chosen


def _kind(values: Any) -> str:
    has_choices = "choices" in values if isinstance(values, dict) else hasattr(values, "choices")
    return "choices" if has_choices else "range"


Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_kind)
]
"""Values of one setting."""


class Pruning(Settings):
    """Asynchronous successive halving (ASHA, Li et al. 2020) on the validation metric."""

    min_evaluations: int = Field(default=1, ge=1)
    """Evaluations that each trial gets before it can be stopped."""
    reduction: int = Field(default=3, ge=2)
    """Of so many trials that have had equally many evaluations one goes on."""


class SearchSpace(Settings):
    """Settings that a sweep searches, and when it stops trials."""

    space: Annotated[dict[str, Values], Field(min_length=1)]
    """Dotted name of a setting -> its values."""
    pruning: Pruning | Literal["none"] = Pruning()
    """When trials are stopped early; ``none``: never."""

    def suggest(self, trial: "Trial") -> list[str]:
        """Lets a trial choose all settings; returns them as overrides of the configuration."""
        return [
            f"{key}={json.dumps(values.suggest(trial, key))}" for key, values in self.space.items()
        ]


def load_space(path: Path) -> SearchSpace:
    """Reads the search space of a sweep.

    Raises:
        ValueError: the file is missing, no YAML, or holds something else; every fault has its
            place.
    """
    try:
        tree = parse_yaml(read_document(path, follow_link=True))
    except FileNotFoundError as error:
        raise ValueError(f"no search space at '{path}'; sweep/README.md shows one") from error
    except yaml.YAMLError as error:
        raise ValueError(f"'{path}' is not valid YAML: {error}") from error
    try:
        return SearchSpace.model_validate(tree)
    except ValidationError as error:
        lines = (
            f"  {_place(fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        )
        raise ValueError(f"search space '{path}' does not fit:\n" + "\n".join(lines)) from None


def _place(keys: Sequence[int | str]) -> str:
    """Returns the place of a fault in the file; pydantic puts the kind of values behind a key."""
    shown = [*keys[:2], *keys[3:]] if keys[:1] == ("space",) else keys
    return ".".join(map(str, shown)) or "(root)"

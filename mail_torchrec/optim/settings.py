"""Settings of the optimizers, which are the first part of the section ``train``."""

from collections.abc import Iterable
from typing import Literal, Self

from pydantic import Field, model_validator

from mail_torchrec.embeddings.settings import TableOptimizerSettings
from mail_torchrec.settings import Settings

RANKING, ZERO_SHOT, ALL_TABLES = "ranking", "zero_shot", "tables"
"""Names of what ``train.freeze`` may hold, beside ``tables.NAME``."""

# Schedules that read a setting, where not all do.
_READ_BY = {
    "end": ("cosine", "polynomial"),
    "power": ("polynomial",),
    "every": ("step",),
    "gamma": ("step",),
}


class ScheduleSettings(Settings):
    """Learning rate over the steps of the run, as a factor of the configured one.

    A step is one batch of each rank, as in metrics.jsonl. The length of cosine and polynomial is
    that of the planned run, all epochs, whether or not it is stopped early.
    """

    name: Literal["constant", "cosine", "polynomial", "step"] = "constant"
    """Course behind the warm-up: ``constant`` stays at 1, ``cosine`` and ``polynomial`` fall to
    ``end`` at the last step, ``step`` is multiplied by ``gamma`` after each ``every`` steps."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the factor rises linearly to 1: 1/N, 2/N, ..., N/N."""
    end: float = Field(default=0.0, ge=0, le=1)
    """Factor at the end of cosine and polynomial."""
    power: float = Field(default=1.0, gt=0)
    """Exponent of polynomial; 1 falls linearly."""
    every: int | None = Field(default=None, ge=1)
    """Steps of ``step`` between two falls, counted from the end of the warm-up."""
    gamma: float = Field(default=0.1, gt=0, lt=1)
    """Factor of each fall of ``step``."""

    @model_validator(mode="after")
    def _check_course(self) -> Self:
        if self.name == "step" and self.every is None:
            raise ValueError("name=step needs 'every', the steps between two falls")
        for key, readers in _READ_BY.items():
            changed = getattr(self, key) != type(self).model_fields[key].default
            if changed and self.name not in readers:
                raise ValueError(
                    f"'{key}' is for name={' and '.join(readers)}, and name={self.name} does not "
                    "read it; leave it out"
                )
        return self


class EmaSettings(Settings):
    """Exponential moving average of the dense weights."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    """Weight of the average in each update. In the n-th update it is (n + 1) / (n + 10) where that
    is less, so that the initial weights are soon forgotten."""


class ScheduledTableSettings(TableOptimizerSettings):
    """Optimizer of all tables, fused into FBGEMM's backward pass, with its schedule."""

    schedule: ScheduleSettings = ScheduleSettings()
    """Schedule of the tables' learning rate."""


class OptimizerSettings(Settings):
    """Optimizers of the dense parameters and of the tables."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of both dense Adam optimizers: the ranking tower's, and (times
    model.zero_shot.learning_rate_scale) the zero-shot tower's."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's two moments, in the dense optimizers and in the tables' Adams."""
    eps: float = Field(default=1e-8, gt=0)
    """Term that the dense Adam optimizers add to the denominator."""
    schedule: ScheduleSettings = ScheduleSettings()
    """Schedule of both dense learning rates."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of the dense optimizers (AdamW): each update multiplies weights by
    1 - learning rate * this. Parameters of one dimension (biases, gains) do not decay."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Greatest norm of a dense group's gradient, over all its parameters and all ranks' rows; a
    longer one is scaled down. Each dense group has its own norm; tables are not part of it
    (train.tables.max_gradient). null does not clip."""
    accumulate: int = Field(default=1, ge=1)
    """Steps between two updates of the dense parameters, whose gradients are averaged over them;
    ranks exchange them once. Tables are updated in each step, since their optimizer is part of the
    backward pass."""
    ema: EmaSettings | None = None
    """Average of the dense weights, which evaluation and export use instead of the newest; null
    averages nothing."""
    freeze: list[str] = []
    """Parts that are not trained: ``ranking``, ``zero_shot``, ``tables`` (all of them) or
    ``tables.NAME``. Their weights, optimizer state and running statistics stay as they are."""
    tables: ScheduledTableSettings = ScheduledTableSettings()
    """Optimizer of the embedding tables, fused into the backward pass where they are sharded."""

    def check_freeze(self, tables: Iterable[str], parts: Iterable[str]) -> None:
        """Checks the names of ``freeze``.

        Args:
            tables: names of the schema's tables.
            parts: dense parts of the model, ``ranking`` and perhaps ``zero_shot``.

        Raises:
            ValueError: a name is unknown, or nothing is left to train.
        """
        tables, parts = [f"{ALL_TABLES}.{name}" for name in tables], list(parts)
        known = [*parts, ALL_TABLES, *tables]
        if unknown := [name for name in self.freeze if name not in known]:
            raise ValueError(
                f"train.freeze should name parts of this model ({', '.join(known)}), received "
                f"{', '.join(unknown)}"
            )
        left = set(parts if ALL_TABLES in self.freeze else [*parts, *tables])
        if self.freeze and not left - set(self.freeze):
            raise ValueError(
                "train.freeze should leave something to train, received "
                f"{', '.join(self.freeze)}; to score without training there is mail-torchrec "
                "evaluate"
            )

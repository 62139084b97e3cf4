"""Progress of the validation: the best step so far, and whether to stop."""

from typing import Annotated

from pydantic import Field, FiniteFloat

from mail_torchrec.settings import Settings
from mail_torchrec.validation.settings import EarlyStoppingSettings

_LOWER_IS_BETTER = ("log_loss", "normalised_entropy", "/mae", "/rmse")

Step = Annotated[int, Field(ge=0, le=2**53)]


class ValidationProgress(Settings):
    """Evaluations of a run so far, as its checkpoints keep them."""

    last_step: Step | None = None
    """Step of the last evaluation; None before the first."""
    last: FiniteFloat | None = None
    """Its value of the metric; None where the metric is undefined."""
    best_step: Step | None = None
    """Step of the best checkpoint; None before the first with a value."""
    best: FiniteFloat | None = None
    reference: FiniteFloat | None = None
    """Value that an improvement is measured from: the last one that ``min_delta`` accepted."""
    num_without_improvement: Step = 0
    """Evaluations since then."""

    def after(
        self, settings: EarlyStoppingSettings, step: int, value: float | None
    ) -> "ValidationProgress":
        """Returns the progress after an evaluation.

        Args:
            settings: of the run.
            step: that was evaluated.
            value: of the metric; None where it is undefined, which counts for nothing.
        """
        changes: dict[str, float | int | None] = {"last_step": step, "last": value}
        if _gain(settings, value, self.best) > 0:
            changes |= {"best_step": step, "best": value}
        if value is None:
            return self.model_copy(update=changes)
        if _gain(settings, value, self.reference) > settings.min_delta:
            changes |= {"reference": value, "num_without_improvement": 0}
        else:
            changes["num_without_improvement"] = self.num_without_improvement + 1
        return self.model_copy(update=changes)

    def with_best_of(self, other: "ValidationProgress") -> "ValidationProgress":
        """Returns this progress with the best step of another one, whose checkpoint exists."""
        return self.model_copy(update={"best_step": other.best_step, "best": other.best})

    def should_stop(self, settings: EarlyStoppingSettings) -> bool:
        """Returns whether the patience is used up."""
        patience = settings.patience
        return patience is not None and self.num_without_improvement >= patience

    def worsening(self, settings: EarlyStoppingSettings) -> float:
        """Returns by how much the last evaluation is worse than the best one; 0 where it is not."""
        return max(_gain(settings, self.best, self.last), 0.0) if self.last is not None else 0.0


def _gain(settings: EarlyStoppingSettings, value: float | None, other: float | None) -> float:
    """Returns by how much a value is better than another one; any value is better than none."""
    if value is None:
        return float("-inf")
    if other is None:
        return float("inf")
    if settings.metric.endswith("calibration"):
        return abs(other - 1) - abs(value - 1)
    return other - value if settings.metric.endswith(_LOWER_IS_BETTER) else value - other

"""Calibration of an exported model: an increasing, piecewise linear map of the clicks' logits.

Shape: ``R`` rows.
"""

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, model_validator

from mail_torchrec.settings import Settings

Method = Literal["platt", "isotonic"]


class Calibrator(Settings):
    """Map of logits through knots, straight between them and beyond.

    It increases everywhere, so the order of candidates is kept and no two of them become equal.
    Platt's calibration (Platt 1999) has one knot, and its slope.
    """

    method: Method
    logits: tuple[FiniteFloat, ...] = Field(min_length=1)
    """Knots: the model's logits, increasing."""
    calibrated: tuple[FiniteFloat, ...] = Field(min_length=1)
    """Calibrated logit at each knot, increasing."""
    first_slope: float = Field(gt=0.0, allow_inf_nan=False)
    """Slope before the first knot."""
    last_slope: float = Field(gt=0.0, allow_inf_nan=False)
    """Slope behind the last knot."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_rising = all(np.all(np.diff(one) > 0) for one in (self.logits, self.calibrated))
        if len(self.logits) != len(self.calibrated) or not is_rising:
            raise ValueError("logits and calibrated should be equally many increasing numbers")
        return self

    def __call__(self, logits_R: NDArray[Any]) -> NDArray[np.float64]:
        """Computes the calibrated logits [R], in float64.

        Args:
            logits_R: logits of the model.
        """
        x_R = logits_R.astype(np.float64)
        inside_R = np.interp(x_R, self.logits, self.calibrated)
        below_R = self.first_slope * np.minimum(x_R - self.logits[0], 0)
        above_R = self.last_slope * np.maximum(x_R - self.logits[-1], 0)
        return np.asarray(inside_R + below_R + above_R)

    def shifted(self, shift: float) -> Self:
        """Returns this map with a number added to the calibrated logits."""
        moved = tuple(value + shift for value in self.calibrated)
        return self.model_copy(update={"calibrated": moved})


class CalibrationMetrics(Settings):
    """Agreement of predicted probabilities with the clicks of rows."""

    calibration: float
    """Predicted clicks over clicks."""
    log_loss: float


class Calibration(Settings):
    """Calibrator of an exported model, and what it does on the rows that it was fitted on."""

    calibrator: Calibrator
    rows: int
    clicks: int
    before: CalibrationMetrics
    after: CalibrationMetrics
    """Cross-fitted: of each half of the users by a calibrator of the other half."""

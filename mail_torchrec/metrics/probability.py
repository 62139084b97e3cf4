"""Log loss, normalised entropy and calibration of the rows of all ranks, by group.

They are quotients of exact sums: the same to the bit, whatever rank had which rows. Shapes: ``R``
rows, ``G`` groups.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.distributed.collectives import gather_objects
from mail_torchrec.metrics.exact_sums import exact_sums


class ProbabilitySums(NamedTuple):
    """Weighted sums over the rows of one group, in units of ``exact_sums``."""

    weight: int = 0
    positives: int = 0
    """Of the labels."""
    predicted: int = 0
    """Of the predicted probabilities."""
    loss: int = 0
    """Of the log losses."""

    def plus(self, other: "ProbabilitySums") -> "ProbabilitySums":
        """Returns the sums over the rows of both."""
        return ProbabilitySums(*(own + its for own, its in zip(self, other, strict=True)))

    @property
    def rate(self) -> float | None:
        """Mean label, such as the CTR; None without rows."""
        return _divide(self.positives, self.weight)

    @property
    def predicted_rate(self) -> float | None:
        """Mean predicted probability; None without rows."""
        return _divide(self.predicted, self.weight)

    @property
    def log_loss(self) -> float | None:
        """Mean log loss; None without rows."""
        return _divide(self.loss, self.weight)

    @property
    def normalised_entropy(self) -> float | None:
        """Log loss over that of predicting the mean label of these rows always (He et al., 2014).

        None where all labels are equal.
        """
        if self.log_loss is None or self.rate is None or not 0 < self.rate < 1:
            return None
        entropy = -self.rate * math.log(self.rate) - (1 - self.rate) * math.log1p(-self.rate)
        return self.log_loss / entropy

    @property
    def calibration(self) -> float | None:
        """Sum of the predicted probabilities over the sum of the labels; None without positives."""
        return _divide(self.predicted, self.positives)


def probability_sums(
    logits_R: NDArray[Any],
    labels_R: NDArray[Any],
    groups_R: NDArray[Any],
    num_groups: int,
    weights_R: NDArray[Any] | None = None,
) -> list[ProbabilitySums]:
    """Sums probabilities, labels and losses of all ranks' rows by group; every rank calls it.

    Args:
        logits_R: of the predicted probabilities.
        labels_R: 0 or 1.
        groups_R: group of each row, 0 .. num_groups - 1.
        num_groups: number of groups.
        weights_R: not negative; None for 1 each.

    Raises:
        ValueError: a loss is infinite or nan.
    """
    is_positive_R = labels_R == 1
    weights = 1.0 if weights_R is None else weights_R.astype(np.float64)
    signed_R = logits_R.astype(np.float64)
    predicted_R = np.exp(-np.logaddexp(0.0, -signed_R))
    np.negative(signed_R, out=signed_R, where=is_positive_R)
    losses_R = np.logaddexp(0.0, signed_R)
    counted = (np.ones(len(logits_R)), is_positive_R.astype(np.float64))
    summed = [
        exact_sums(values_R * weights, groups_R, num_groups)
        for values_R in (*counted, predicted_R, losses_R)
    ]
    own = [ProbabilitySums(*sums) for sums in zip(*summed, strict=True)]
    totals = [ProbabilitySums()] * num_groups
    for of_rank in gather_objects(own):
        totals = [total.plus(sums) for total, sums in zip(totals, of_rank, strict=True)]
    return totals


def logit(probability: float) -> float:
    """Returns the logit of a probability in 0..1, infinite at its ends."""
    if not 0 < probability < 1:
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)


def _divide(above: int, below: int) -> float | None:
    return above / below if below else None

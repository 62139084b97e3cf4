"""Correction of probabilities learnt from rows whose negatives were downsampled.

Of training rows that keep a share ``w`` of the negatives, a model learns the odds ``1 / w`` times
the true ones. The true probability is ``q = p / (p + (1 - p) / w)`` (He et al., ADKDD 2014), that
is, ``log(w)`` is added to the logit. Shape: ``R`` rows.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def logit_shift(negatives_kept: float) -> float:
    """Returns what is added to a logit learnt from rows that keep a share of their negatives."""
    return math.log(negatives_kept)


def logits_of_sample(logits_R: NDArray[Any], negatives_kept: float) -> NDArray[Any]:
    """Returns logits [R] of a click among rows that keep a share of their negatives.

    By Bayes' rule this is what the clicks of such rows follow, so it is what they are compared
    with. Where all negatives are kept, the logits are returned as they are.

    Args:
        logits_R: logits of the true probability.
        negatives_kept: share of the negatives that the rows hold.
    """
    return logits_R if negatives_kept == 1 else logits_R - logit_shift(negatives_kept)


def shifted_rate(rate: float, shift: float) -> float:
    """Returns the rate, between 0 and 1, whose logit is another one's plus a number."""
    return rate / (rate + (1 - rate) * math.exp(-shift)) if shift else rate


def product_logits(x_R: NDArray[Any], y_R: NDArray[Any]) -> NDArray[np.float64]:
    """Computes the logit [R] of the product of two probabilities.

    Args:
        x_R: logits.
        y_R: logits.
    """
    x_R, y_R = x_R.astype(np.float64), y_R.astype(np.float64)
    found: NDArray[np.float64] = -np.logaddexp(np.logaddexp(-x_R, -y_R), -x_R - y_R)
    return found

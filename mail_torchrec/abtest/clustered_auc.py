"""AUC with an interval that treats users as the units, as :mod:`estimates` does for rates.

``R`` rows, ``U`` users.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class ClusteredAuc(NamedTuple):
    """AUC and its variance; nan where one class is missing, or there is a single user."""

    value: float
    variance: float


def clustered_auc(
    scores_R: Floats, labels_R: NDArray[np.generic], users_R: NDArray[np.generic]
) -> ClusteredAuc:
    """Computes the AUC of all rows, and its variance over users (Obuchowski, Biometrics 1997).

    With the placements ``V`` of DeLong et al. (1988), the share of the other class on a row's right
    side, a user contributes ``sum_pos (V - A) / N_pos + sum_neg (V - A) / N_neg``; the variance is
    that of the sum of these over users, who are independent, where their rows are not.

    Args:
        scores_R: predicted probabilities.
        labels_R: 0 or 1.
        users_R: user of each row.
    """
    is_positive_R = np.asarray(labels_R) == 1
    num_positives = int(is_positive_R.sum())
    num_negatives = len(is_positive_R) - num_positives
    if not num_positives or not num_negatives:
        return ClusteredAuc(np.nan, np.nan)
    positives, negatives = np.sort(scores_R[is_positive_R]), np.sort(scores_R[~is_positive_R])
    placements_R = np.where(
        is_positive_R, _share_below(negatives, scores_R), 1 - _share_below(positives, scores_R)
    )
    value = float(placements_R[is_positive_R].mean())
    class_sizes_R = np.where(is_positive_R, num_positives, num_negatives)
    return ClusteredAuc(value, _variance((placements_R - value) / class_sizes_R, users_R))


def _variance(parts_R: Floats, users_R: NDArray[np.generic]) -> float:
    """Computes the variance of a sum of rows, of which those of one user hang together."""
    users, indices_R = np.unique(users_R, return_inverse=True)
    num_users = len(users)
    if num_users < 2:
        return float("nan")
    of_users_U = np.bincount(indices_R, parts_R)
    return float(np.square(of_users_U).sum() * num_users / (num_users - 1))


def _share_below(sorted_values: Floats, scores_R: Floats) -> Floats:
    """Computes the share of values below each score, equal ones counted one half, [R]."""
    below_R = np.searchsorted(sorted_values, scores_R, side="left")
    not_above_R = np.searchsorted(sorted_values, scores_R, side="right")
    shares_R: Floats = (below_R + not_above_R) / (2 * len(sorted_values))
    return shares_R

"""Exact AUC over all rows and within users.

Pairs are counted in integer arithmetic, so that no order of the rows changes a bit of the result.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def auc(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Computes the area under the ROC curve.

    That is the share of (positive, negative) pairs in the right order, ties counted one half.

    Args:
        scores: any monotone function of the predicted probability, ``[rows]``.
        labels: 0 or 1, ``[rows]``.

    Returns:
        A value in 0..1; nan where one class (or every row) is missing.

    Raises:
        ValueError: the shapes differ, a score is nan, or a label is neither 0 nor 1.
    """
    twice_concordant, positives, negatives = concordance_by_user(
        scores, labels, np.zeros(len(scores), np.int64)
    )
    pairs = int(positives.sum()) * int(negatives.sum())
    return int(twice_concordant.sum()) / (2 * pairs) if pairs else float("nan")


def gauc(scores: NDArray[Any], labels: NDArray[Any], users: NDArray[Any]) -> float:
    """Computes the mean of the users' own AUCs, weighted by their rows (Zhou et al., KDD 2018).

    Users with one class are left out.

    Args:
        scores: any monotone function of the predicted probability, ``[rows]``.
        labels: 0 or 1, ``[rows]``.
        users: the row's user as an integer or a string, ``[rows]``.

    Returns:
        A value in 0..1; nan where no user has both classes.

    Raises:
        ValueError: the shapes differ, a score is nan, or a label is neither 0 nor 1.
    """
    twice_concordant, positives, negatives = concordance_by_user(scores, labels, users)
    pairs = positives * negatives
    both = pairs > 0
    if not both.any():
        return float("nan")
    rows = (positives + negatives)[both]
    return float(np.sum(rows * (twice_concordant[both] / (2 * pairs[both]))) / rows.sum())


def concordance_by_user(
    scores: NDArray[Any], labels: NDArray[Any], users: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Counts concordant pairs, positives and negatives of each user, in sorted order of users.

    Args:
        scores: any monotone function of the predicted probability, ``[rows]``.
        labels: 0 or 1, ``[rows]``.
        users: the row's user as an integer or a string, ``[rows]``.

    Returns:
        Twice the concordant pairs (a tie counts half), positives and negatives; ``[users]`` each.

    Raises:
        ValueError: as :func:`gauc`.
    """
    _check(scores, labels, users)
    if len(scores) == 0:
        return (np.zeros(0, np.int64),) * 3
    order = np.lexsort((scores, users))
    scores, users, labels = scores[order], users[order], labels[order].astype(np.int64)
    new_user = np.append(True, users[1:] != users[:-1])
    new_score = new_user | np.append(True, scores[1:] != scores[:-1])
    user_starts, tie_starts = np.flatnonzero(new_user), np.flatnonzero(new_score)
    user_of_tie = np.cumsum(new_user)[tie_starts] - 1
    positives, negatives = (np.add.reduceat(kind, tie_starts) for kind in (labels, 1 - labels))
    user_negatives = np.add.reduceat(1 - labels, user_starts)
    # Negatives of the same user with a lower score: all negatives before this tie, less those of
    # the users before this one.
    below = (
        np.cumsum(negatives) - negatives - (np.cumsum(user_negatives) - user_negatives)[user_of_tie]
    )
    twice_concordant = np.zeros(len(user_starts), np.int64)
    np.add.at(twice_concordant, user_of_tie, positives * (2 * below + negatives))
    return twice_concordant, np.add.reduceat(labels, user_starts), user_negatives


def _check(scores: NDArray[Any], labels: NDArray[Any], users: NDArray[Any]) -> None:
    shapes = [column.shape for column in (scores, labels, users)]
    if len(set(shapes)) > 1 or scores.ndim != 1:
        raise ValueError(
            "AUC: scores, labels and users should be 1-D and of one length, received shapes "
            f"{shapes}"
        )
    if bad := int(np.isnan(scores).sum()):
        raise ValueError(
            f"AUC: scores should be numbers, received {bad} nan of {len(scores)} rows; the model "
            "diverged or an input is nan"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"AUC: labels should be 0 or 1, received {np.setdiff1d(labels, (0, 1))[:5].tolist()}"
        )

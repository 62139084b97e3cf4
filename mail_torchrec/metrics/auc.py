"""Exact AUC over all rows and within users, of the rows of one process.

Pairs are counted in integer arithmetic, so that no order of the rows changes a bit of the result.
Shapes: ``R`` rows, ``T`` ties (rows of one group and one score), ``G`` groups, ``U`` users.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.metrics.exact_sums import exact_sums
from mail_torchrec.metrics.fixed_point import fixed_point, overflows, unit_bits
from mail_torchrec.metrics.ties import Ints, Ties, auc_of_pairs, mean_auc


def auc(scores: NDArray[Any], labels: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    """Computes the area under the ROC curve.

    That is the share of (positive, negative) pairs in the right order, ties counted one half. With
    weights, a pair counts the product of its rows' weights.

    Args:
        scores: any monotone function of the predicted probability, ``[rows]``.
        labels: 0 or 1, ``[rows]``.
        weights: not negative, ``[rows]``; None for 1 each.

    Returns:
        A value in 0..1; nan where one class (or every row) is missing.

    Raises:
        ValueError: the shapes differ, a score is nan, a label is neither 0 nor 1, or a weight is
            negative.
    """
    ties, as_float = _sorted_ties(scores, labels, np.zeros(len(scores), np.int64), weights)
    twice_T = ties.twice_concordant(np.zeros(1, np.int64), as_float=as_float)
    twice = exact_sums(twice_T, ties.groups_T, 1)[0] if as_float else int(twice_T.sum())
    return auc_of_pairs(twice, int(ties.positives_T.sum()), int(ties.negatives_T.sum()), as_float)


def gauc(
    scores: NDArray[Any],
    labels: NDArray[Any],
    users: NDArray[Any],
    weights: NDArray[Any] | None = None,
) -> float:
    """Computes the mean of the users' own AUCs, weighted by their rows (Zhou et al., KDD 2018).

    Users with one class are left out. With weights, the users' AUCs are weighted ones, and each
    user counts the sum of the rows' weights.

    Args:
        scores: any monotone function of the predicted probability, ``[rows]``.
        labels: 0 or 1, ``[rows]``.
        users: the row's user as an integer or a string, ``[rows]``.
        weights: not negative, ``[rows]``; None for 1 each.

    Returns:
        A value in 0..1; nan where no user has both classes.

    Raises:
        ValueError: as :func:`auc`.
    """
    ties, as_float = _sorted_ties(scores, labels, users, weights)
    num_users = int(ties.groups_T[-1]) + 1 if len(ties.groups_T) else 0
    aucs = ties.group_aucs(num_users, as_float=as_float)
    [total], [weight] = aucs.totals(np.zeros(num_users, np.int64), 1)
    return mean_auc(total, weight)


def concordance_by_user(
    scores: NDArray[Any], labels: NDArray[Any], users: NDArray[Any]
) -> tuple[Ints, Ints, Ints]:
    """Counts concordant pairs, positives and negatives of each user, in sorted order of users.

    Args:
        scores: any monotone function of the predicted probability, ``[rows]``.
        labels: 0 or 1, ``[rows]``.
        users: the row's user as an integer or a string, ``[rows]``.

    Returns:
        Twice the concordant pairs (a tie counts half), positives and negatives; ``[users]`` each.

    Raises:
        ValueError: as :func:`auc`.
    """
    ties, _ = _sorted_ties(scores, labels, users, None)
    num_users = int(ties.groups_T[-1]) + 1 if len(ties.groups_T) else 0
    twice_T = ties.twice_concordant(np.zeros(num_users, np.int64), as_float=False)
    twice_U, positives_U, negatives_U = (
        ties.group_sums(values_T, num_users)
        for values_T in (twice_T, ties.positives_T, ties.negatives_T)
    )
    return twice_U, positives_U, negatives_U


def _sorted_ties(
    scores: NDArray[Any],
    labels: NDArray[Any],
    users: NDArray[Any],
    weights: NDArray[Any] | None,
) -> tuple[Ties, bool]:
    """Sorts rows [rows] by user and score; returns their ties, and whether products overflow."""
    check_rows(scores, labels, users, weights)
    if weights is None:
        units = np.ones(len(scores), np.int64)
    else:
        units = fixed_point(weights, unit_bits(float(weights.max(initial=0)), len(weights)))
    order = np.lexsort((scores, users))
    users, labels, units = users[order], labels[order] == 1, units[order]
    groups = np.cumsum(np.append(False, users[1:] != users[:-1])) if len(users) else users
    ties = Ties.of_sorted(groups, scores[order], units * labels, units * ~labels)
    return ties, overflows(int(units.sum()))


def check_rows(
    scores: NDArray[Any],
    labels: NDArray[Any],
    users: NDArray[Any],
    weights: NDArray[Any] | None = None,
) -> None:
    """Checks columns of rows to be ranked.

    Args:
        scores: any monotone function of the predicted probability, ``[rows]``.
        labels: 0 or 1, ``[rows]``.
        users: the row's user, ``[rows]``.
        weights: not negative, ``[rows]``; None for 1 each.

    Raises:
        ValueError: the shapes differ, a score is nan, a label is neither 0 nor 1, or a weight is
            negative or not finite.
    """
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
    if weights is None:
        return
    if weights.shape != scores.shape or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(
            f"AUC: weights should be one finite number of 0 or more a row, received shape "
            f"{weights.shape} for {len(scores)} rows, or negative, infinite or nan ones"
        )

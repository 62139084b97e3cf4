"""Computes AUC and GAUC of one run on many resamples of its users.

Shape letters: ``R`` rows, ``U`` users, ``P`` rows with label 1, ``N`` rows with label 0, ``S``
seeds, ``B`` the data as it is, then the resamples; ``K`` a few of these.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.metrics.auc import concordance_by_user
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.reporting.intervals import t_quantile

_NORMAL_QUANTILE = 1.959963984540054
_USER_STREAM, _SEED_STREAM = 1, 2
_MAX_CELLS = 4_000_000
"""Rows times resamples that are worked on at a time: some 100 MB."""

Floats = NDArray[np.float64]


def bootstrap_run(rows: Predictions, num_resamples: int) -> dict[str, Floats]:
    """Computes AUC and GAUC ``[B]`` of one run: on the data, then on each resample of its users.

    Args:
        rows: the predictions of one cohort.
        num_resamples: number of resamples.

    Returns:
        ``auc`` and ``gauc``, nan where undefined.
    """
    users_U, user_index_R = np.unique(rows.users_R, return_inverse=True)
    ranked = WeightedAuc(rows.scores_R, rows.labels_R, user_index_R)
    auc_U, num_rows_U = _auc_by_user(rows)
    at_a_time = max(1, _MAX_CELLS // max(len(rows.scores_R), 1))
    auc, gauc = [], []
    for counts_UK in user_counts(len(users_U), num_resamples, at_a_time):
        auc.append(ranked.auc_K(counts_UK))
        gauc.append(_divide((num_rows_U * auc_U) @ counts_UK, num_rows_U @ counts_UK))
    return {"auc": np.concatenate(auc), "gauc": np.concatenate(gauc)}


class WeightedAuc:
    """Sorts rows by score once, for the weighted AUC under many weights of their users.

    Args:
        scores_R: any monotone function of the predicted probability.
        labels_R: 0 or 1.
        user_index_R: the number 0 .. U - 1 of each row's user.
    """

    def __init__(
        self, scores_R: NDArray[Any], labels_R: NDArray[Any], user_index_R: NDArray[np.int64]
    ) -> None:
        positive_P, negative_N = np.flatnonzero(labels_R == 1), np.flatnonzero(labels_R == 0)
        negative_N = negative_N[np.argsort(scores_R[negative_N], kind="stable")]
        self._positive_users_P = user_index_R[positive_P]
        self._negative_users_N = user_index_R[negative_N]
        # Numbers of negatives that score less, and at most as much: a tie counts as half a win.
        scores_N, scores_P = scores_R[negative_N], scores_R[positive_P]
        self._num_below_P = np.searchsorted(scores_N, scores_P, "left")
        self._num_not_above_P = np.searchsorted(scores_N, scores_P, "right")

    def auc_K(self, weights_UK: Floats) -> Floats:
        """Computes the AUC ``[K]`` for each column of user weights; nan without pairs.

        It is the share of the weight of (positive, negative) pairs in the right order.
        """
        weights_PK = weights_UK[self._positive_users_P]
        cumulative_NK = np.zeros((len(self._negative_users_N) + 1, weights_UK.shape[1]))
        np.cumsum(weights_UK[self._negative_users_N], axis=0, out=cumulative_NK[1:])
        below_PK = cumulative_NK[self._num_below_P] + cumulative_NK[self._num_not_above_P]
        twice_wins_K = np.einsum("pk,pk->k", weights_PK, below_PK)
        return _divide(twice_wins_K, 2 * weights_PK.sum(0) * cumulative_NK[-1])


def user_counts(num_users: int, num_resamples: int, at_a_time: int) -> Iterator[Floats]:
    """Counts the times ``[U, K]`` that each resample draws each user.

    The first column of all is the data: each user once. The others are random, the same in every
    call.

    Args:
        num_users: number of users.
        num_resamples: number of resamples, not counting the data.
        at_a_time: greatest K of a piece.
    """
    for start in range(0, num_resamples + 1, at_a_time):
        columns = range(start, min(start + at_a_time, num_resamples + 1))
        counts = [_draw_users(num_users, column) for column in columns]
        yield np.stack(counts, axis=1, dtype=np.float64)


def seed_weights_SB(num_seeds: int, num_resamples: int) -> Floats:
    """Computes the weights ``[S, B]`` of seeds in the mean: equal in the first column, then random.

    Random weights are spread so that the mean varies as Student's t says for so few seeds.
    """
    weights_SB = np.full((num_seeds, num_resamples + 1), 1 / num_seeds)
    if num_seeds > 1:
        random = np.random.default_rng([_SEED_STREAM, num_seeds])
        normal_SB = random.standard_normal((num_resamples, num_seeds)).T
        spread = t_quantile(num_seeds - 1) / _NORMAL_QUANTILE / np.sqrt(num_seeds * (num_seeds - 1))
        weights_SB[:, 1:] += spread * (normal_SB - normal_SB.mean(0))
    return weights_SB


def _auc_by_user(rows: Predictions) -> tuple[Floats, NDArray[np.int64]]:
    """Computes each user's AUC ``[U]`` and number of rows ``[U]``, 0 for users of one class."""
    twice_wins_U, positives_U, negatives_U = concordance_by_user(
        rows.scores_R, rows.labels_R, rows.users_R
    )
    pairs_U = positives_U * negatives_U
    num_rows_U = np.where(pairs_U > 0, positives_U + negatives_U, 0)
    return twice_wins_U / np.maximum(2 * pairs_U, 1), num_rows_U


def _draw_users(num_users: int, column: int) -> NDArray[np.int64]:
    if column == 0 or num_users == 0:
        return np.ones(num_users, np.int64)
    random = np.random.default_rng([_USER_STREAM, column])
    return np.bincount(random.integers(num_users, size=num_users), minlength=num_users)


def _divide(above_K: Floats, below_K: Floats) -> Floats:
    """Divides where the divisor is positive, nan elsewhere."""
    result_K: Floats = np.full(np.shape(above_K), np.nan)
    np.divide(above_K, below_K, out=result_K, where=below_K > 0)
    return result_K

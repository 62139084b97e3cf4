"""Predicts histories from attributes by kernel ridge regression, out of fold on training users.

Shapes: ``R`` rows, ``N`` different rows of attributes, ``U`` users, ``T`` statistics of a history,
``F`` features.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from mail_torchrec.diagnose.attribute_kernel import fit_kernel_ridge
from mail_torchrec.diagnose.features import FOLDS, FeatureGroup, Features, Floats, Ints, Rows
from mail_torchrec.diagnose.histories import Statistics, last_rows

MIN_USERS = 100
"""Training users with a history that a prediction is fitted on, at least."""
_CONSTANT = 0.02
"""Standard deviation over users, in units of a statistic's scale, below which histories agree in
it. Histories of 50 entries that are drawn alike deviate by .14 of their items' factors."""


@dataclass(frozen=True)
class PredictedHistories:
    """Statistics of histories, predicted from attributes.

    Args:
        statistics: predicted, of all rows.
        explained: R^2 of each statistic on the test users, by name, but for those in which
            histories hardly differ.
    """

    statistics: Statistics
    explained: dict[str, float]


def predict_histories(features: Features, known: Statistics, rows: Rows) -> PredictedHistories:
    """Predicts the statistics of all rows' histories from attributes.

    A training row is predicted by users of other folds, a test row by all training users.

    Args:
        features: with the attributes.
        known: statistics of the real histories; those of test rows only measure the prediction.
        rows: training and test rows.
    """
    has_history_R = rows.num_behaviours_R > 0
    chosen_R = last_rows(rows, has_history_R)
    inputs_NF, place_R = _inputs(features)
    mean_T, deviation_T = _moments(known.values_RT[chosen_R])
    fitted = fit_kernel_ridge(
        inputs_NF[place_R[chosen_R]],
        (known.values_RT[chosen_R] - mean_T) / deviation_T,
        rows.folds_R[chosen_R],
    )
    folds_R = np.full(len(has_history_R), FOLDS)
    folds_R[: rows.num_train] = rows.folds_R
    # Rows of one fold that agree in their attributes are predicted once.
    pairs, back_R = np.unique(place_R * (FOLDS + 1) + folds_R, return_inverse=True)
    predicted = fitted.predict(inputs_NF[pairs // (FOLDS + 1)], pairs % (FOLDS + 1))
    predicted_RT = predicted[back_R] * deviation_T + mean_T
    measured = last_rows(rows, has_history_R, of_test=True)
    return PredictedHistories(
        Statistics(known.names, predicted_RT, known.scales_T, known.num_factors),
        _explained(known, predicted_RT, measured),
    )


def _inputs(features: Features) -> tuple[sp.csr_matrix, Ints]:
    """Encodes the different rows of attributes [N, F]: categories one-hot, numbers standardised.

    Returns also the place of each row among them, [R].
    """
    values_RF, is_category, _ = features.select([FeatureGroup.ATTRIBUTES])
    weights_F = np.random.default_rng(0).standard_normal(values_RF.shape[1])
    sums_R = np.where(np.isfinite(values_RF), values_RF, -1.5) @ weights_F  # equal for equal rows
    _, first_N, place_R = np.unique(sums_R, return_index=True, return_inverse=True)
    blocks = []
    for column_R, category in zip(values_RF.T, is_category, strict=True):
        if category:
            codes_N = np.unique(column_R, return_inverse=True)[1][first_N]
            ones_N = np.ones(len(codes_N))
            blocks.append(sp.csr_matrix((ones_N, (np.arange(len(codes_N)), codes_N))))
        else:
            is_known_R = np.isfinite(column_R)
            mean = column_R[is_known_R].mean() if is_known_R.any() else 0.0
            known_R = np.where(is_known_R, column_R, mean)
            mean, deviation = _moments(known_R[: features.num_train])
            blocks.append(sp.csr_matrix(((known_R - mean) / deviation)[first_N, None]))
    return sp.csr_matrix(sp.hstack(blocks)), place_R


def _moments(values: Floats) -> tuple[Floats, Floats]:
    """Returns mean and standard deviation along the first axis; 1 where it is 0."""
    deviation = values.std(axis=0)
    return values.mean(axis=0), np.where(deviation > 1e-9, deviation, 1.0)


def _explained(known: Statistics, predicted_RT: Floats, measured_U: Ints) -> dict[str, float]:
    """Returns R^2 over users of the statistics in which histories differ.

    Where they are nearly constant, the mean is as good a prediction as any, and R^2 says nothing.
    """
    known_UT, predicted_UT = known.values_RT[measured_U], predicted_RT[measured_U]
    deviation_T = known_UT.std(axis=0)
    residual_T = ((known_UT - predicted_UT) ** 2).mean(axis=0)
    return {
        name: float(1 - residual_T[place] / deviation_T[place] ** 2)
        for place, name in enumerate(known.names)
        if deviation_T[place] > _CONSTANT * known.scales_T[place]
    }

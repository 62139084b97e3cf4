"""Predicts histories from attributes with a small network, out of fold on training users.

Shapes: ``R`` rows, ``U`` users, ``T`` statistics of a history, ``F`` features.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from mail_torchrec.diagnose.features import FOLDS, FeatureGroup, Features, Floats, Rows
from mail_torchrec.diagnose.histories import Statistics, last_rows

MIN_USERS = 100
"""Training users with a history that a prediction is fitted on, at least."""
_HIDDEN = (256, 128)
_WEIGHT_DECAY = 0.003


@dataclass(frozen=True)
class PredictedHistories:
    """Statistics of histories, predicted from attributes.

    Args:
        statistics: predicted, of all rows.
        explained: R^2 of each statistic on the test rows, by name.
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
    inputs_RF = _inputs(features)
    folds_U = rows.folds_R[chosen_R]
    mean_T, deviation_T = _moments(known.values_RT[chosen_R])
    targets_UT = (known.values_RT[chosen_R] - mean_T) / deviation_T
    predicted_RT = np.empty_like(known.values_RT)
    is_test_R = np.arange(len(has_history_R)) >= rows.num_train
    predicted_RT[is_test_R] = _fit(inputs_RF[chosen_R], targets_UT).predict(inputs_RF[is_test_R])
    for fold in range(FOLDS):
        held_out = np.flatnonzero(rows.folds_R == fold)
        if len(held_out):
            fitted = _fit(inputs_RF[chosen_R[folds_U != fold]], targets_UT[folds_U != fold])
            predicted_RT[held_out] = fitted.predict(inputs_RF[held_out])
    predicted_RT = predicted_RT * deviation_T + mean_T
    measured = is_test_R & has_history_R
    explained = _explained(known.values_RT[measured], predicted_RT[measured])
    return PredictedHistories(
        Statistics(known.names, predicted_RT, known.num_factors),
        dict(zip(known.names, explained.tolist(), strict=True)),
    )


def _inputs(features: Features) -> sp.csr_matrix:
    """Encodes the attributes [R, F]: categories one-hot, numbers standardised."""
    values_RF, is_category, _ = features.select([FeatureGroup.ATTRIBUTES])
    blocks = []
    for column_R, category in zip(values_RF.T, is_category, strict=True):
        if category:
            codes_R = np.unique(column_R, return_inverse=True)[1]
            ones_R = np.ones(len(codes_R))
            blocks.append(sp.csr_matrix((ones_R, (np.arange(len(codes_R)), codes_R))))
        else:
            is_known_R = np.isfinite(column_R)
            mean = column_R[is_known_R].mean() if is_known_R.any() else 0.0
            known_R = np.where(is_known_R, column_R, mean)
            mean, deviation = _moments(known_R[: features.num_train])
            blocks.append(sp.csr_matrix(((known_R - mean) / deviation)[:, None]))
    return sp.csr_matrix(sp.hstack(blocks))


def _moments(values: Floats) -> tuple[Floats, Floats]:
    """Returns mean and standard deviation along the first axis; 1 where it is 0."""
    deviation = values.std(axis=0)
    return values.mean(axis=0), np.where(deviation > 1e-9, deviation, 1.0)


def _fit(inputs_UF: sp.csr_matrix, targets_UT: Floats) -> MLPRegressor:
    network = MLPRegressor(
        hidden_layer_sizes=_HIDDEN,
        alpha=_WEIGHT_DECAY,
        batch_size=min(256, inputs_UF.shape[0] // 2),
        early_stopping=True,
        n_iter_no_change=5,
        max_iter=60,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # early stopping decides
        return network.fit(inputs_UF, targets_UT)


def _explained(known_RT: Floats, predicted_RT: Floats) -> Floats:
    """Returns R^2 of each statistic [T]."""
    residual_T = ((known_RT - predicted_RT) ** 2).mean(axis=0)
    explained_T: Floats = 1 - residual_T / np.maximum(known_RT.var(axis=0), 1e-12)
    return explained_T

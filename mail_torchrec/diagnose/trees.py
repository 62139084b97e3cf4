"""Gradient-boosted trees as click models, and intervals of their AUCs over users.

Shapes: ``R`` rows, ``F`` features, ``U`` users, ``B`` the data as it is, then the resamples.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier

from mail_torchrec.diagnose.features import FeatureGroup, Features, Floats, Rows
from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.reproduce.resampling import WeightedAuc, user_counts

NUM_RESAMPLES = 300
SEEDS, MAX_ITERATIONS = (0, 1), 300
_USER_PARTS = {FeatureGroup.ATTRIBUTES}
_AT_A_TIME = 50


@dataclass(frozen=True)
class FittedTrees:
    """Trees that are fitted, whose scores are means.

    Args:
        trees: one fit each.
        parts: groups of features that they see.
    """

    trees: list[HistGradientBoostingClassifier]
    parts: Collection[FeatureGroup]

    def score(self, features: Features) -> Floats:
        """Returns probabilities of the test rows, [R].

        Args:
            features: of training rows, then of test rows, in the groups and order of the fit.
        """
        test_RF = features.select(self.parts)[0][features.num_train :]
        mean_R: Floats = np.mean([trees.predict_proba(test_RF)[:, 1] for trees in self.trees], 0)
        return mean_R


def fit_scores(
    features: Features,
    parts: Collection[FeatureGroup],
    rows: Rows,
    *,
    additive: bool = False,
) -> Floats:
    """Fits trees on the training rows and scores the test rows, [R]; see :func:`fit_trees`."""
    return fit_trees(features, parts, rows, additive=additive).score(features)


def fit_trees(
    features: Features,
    parts: Collection[FeatureGroup],
    rows: Rows,
    *,
    additive: bool = False,
) -> FittedTrees:
    """Fits trees on the training rows, two fits.

    Each fit stops by the loss of another fifth of the training users: attributes can name users,
    and more trees would learn these by heart.

    Args:
        features: of training rows, then of test rows.
        parts: groups of features that the trees see.
        rows: the rows of the features.
        additive: do not let attributes interact with other features.
    """
    values_RF, is_category, groups = features.select(parts)
    train_RF = values_RF[: features.num_train]
    interactions: Any = None
    if additive:
        places = range(len(groups))
        interactions = [
            {place for place in places if groups[place] in _USER_PARTS},
            {place for place in places if groups[place] not in _USER_PARTS},
        ]
    labels_R = rows.labels_R
    fitted: list[HistGradientBoostingClassifier] = []
    for seed in SEEDS:
        is_fitted_R = rows.folds_R != seed
        trees = HistGradientBoostingClassifier(
            max_iter=MAX_ITERATIONS,
            learning_rate=0.1,
            max_leaf_nodes=15,
            min_samples_leaf=50,
            l2_regularization=5,
            max_features=0.3,
            categorical_features=is_category or None,
            interaction_cst=interactions,
            early_stopping=True,
            n_iter_no_change=10,
            random_state=seed,
        )
        trees.fit(
            train_RF[is_fitted_R],
            labels_R[is_fitted_R],
            X_val=train_RF[~is_fitted_R],
            y_val=labels_R[~is_fitted_R],
        )
        fitted.append(trees)
    return FittedTrees(fitted, parts)


class MeasuredScores:
    """AUCs of several models on the same rows, on the data and on resamples of its users.

    Args:
        labels_R: labels.
        users_R: user of each row.
    """

    def __init__(self, labels_R: npt.NDArray[np.bool_], users_R: npt.NDArray[np.int64]) -> None:
        self._labels_R = labels_R
        users, self._index_R = np.unique(users_R, return_inverse=True)
        self.num_users, self.num_rows = len(users), len(users_R)
        self._aucs: dict[str, Floats] = {}

    def add(self, name: str, scores_R: Floats) -> None:
        """Measures a model.

        Args:
            name: of the model.
            scores_R: its probabilities.
        """
        ranked = WeightedAuc(scores_R, self._labels_R, self._index_R)
        pieces = user_counts(self.num_users, NUM_RESAMPLES, _AT_A_TIME)
        self._aucs[name] = np.concatenate([ranked.auc_K(counts_UK) for counts_UK in pieces])

    def auc(self, name: str) -> Interval:
        """Returns a model's AUC."""
        return _interval(self._aucs[name])

    def aucs(self) -> dict[str, Interval]:
        """Returns the AUC of each model, in the order in which they were measured."""
        return {name: self.auc(name) for name in self._aucs}

    def gain(self, name: str, base: str) -> Interval:
        """Returns the difference of two models' AUCs."""
        return _interval(self._aucs[name] - self._aucs[base])

    def share(self, name: str, of: str, base: str) -> Interval:
        """Returns one model's gain over a base as a share of another model's."""
        base_B = self._aucs[base]
        with np.errstate(divide="ignore", invalid="ignore"):  # equal AUCs: there is no share
            return _interval((self._aucs[name] - base_B) / (self._aucs[of] - base_B))


def _interval(values_B: Floats) -> Interval:
    known = values_B[1:][np.isfinite(values_B[1:])]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Interval(float(values_B[0]), float(low), float(high), 1)

"""Single columns as predictors of the label: AUC of out-of-fold means of the label.

Shapes: ``R`` rows, ``V`` distinct values of a column.
"""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_FOLDS = 4
_PRIOR_ROWS = 5.0
"""Rows of the mean of all that each value's mean is pulled to."""


def target_mean_auc(codes_R: Ints, labels_R: npt.NDArray[np.bool_]) -> float:
    """Returns the AUC of a column that is replaced by its values' mean label in other folds.

    A value that stands in one row alone says nothing in it, so that an id of the row has an AUC of
    about one half. NaN where the labels are all one.

    Args:
        codes_R: numbers of the column's values.
        labels_R: clicked or not.
    """
    folds_R = np.random.default_rng(0).integers(0, _FOLDS, len(codes_R))
    num_values = int(codes_R.max()) + 1 if len(codes_R) else 0
    scores_R = np.zeros(len(codes_R))
    for fold in range(_FOLDS):
        other_R = folds_R != fold
        prior = labels_R[other_R].mean() if other_R.any() else 0.0
        clicks_V = np.bincount(codes_R[other_R], labels_R[other_R], minlength=num_values)
        rows_V = np.bincount(codes_R[other_R], minlength=num_values)
        means_V = (clicks_V + _PRIOR_ROWS * prior) / (rows_V + _PRIOR_ROWS)
        # Beside the fold's own prior, or the folds' different priors would tell its label.
        scores_R[~other_R] = means_V[codes_R[~other_R]] - prior
    return area_under_roc(np.round(scores_R, 12), labels_R)  # rounding is no order


def area_under_roc(scores_R: Floats, labels_R: npt.NDArray[np.bool_]) -> float:
    """Returns the share of pairs of a clicked and another row in the right order, ties a half.

    Args:
        scores_R: any numbers; higher means rather clicked.
        labels_R: clicked or not.
    """
    num_clicked = int(labels_R.sum())
    if num_clicked in (0, len(labels_R)):
        return float("nan")
    _, inverse, counts = np.unique(scores_R, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks_R = (ends - (counts - 1) / 2)[inverse]
    others = len(labels_R) - num_clicked
    above = ranks_R[labels_R].sum() - num_clicked * (num_clicked + 1) / 2
    return float(above / (num_clicked * others))


def number_codes(values_R: Floats, num_bins: int = 50) -> Ints:
    """Numbers the quantiles that numbers lie in, [R]; those that are not finite are one more.

    Args:
        values_R: numbers.
        num_bins: quantiles.
    """
    known_R = np.isfinite(values_R)
    if not known_R.any():
        return np.zeros(len(values_R), np.int64)
    edges = np.unique(np.quantile(values_R[known_R], np.linspace(0, 1, num_bins + 1)[1:-1]))
    codes_R: Ints = np.searchsorted(edges, values_R, side="right").astype(np.int64)
    codes_R[~known_R] = len(edges) + 1
    return codes_R

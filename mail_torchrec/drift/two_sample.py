"""Two-sample AUC: how well a classifier discriminates two sets of vectors.

Shape letters: ``N``, ``M`` vectors of two sets; ``V`` vectors of both; ``D`` elements; ``Q``
vectors to be classified; ``K`` nearest neighbours.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_VECTORS = 10
"""Fewest vectors of either set: two in each fold."""
_NUM_NEIGHBOURS, _NUM_FOLDS, _SEED = 30, 5, 0
_CELLS = 2**19  # distances in memory at a time: 4 MB
_MIN_SPREAD = 1e-6  # of the largest value: a smaller spread may be the rounding of float32

Floats = NDArray[np.float64]


def two_sample_auc(first_ND: NDArray[Any], second_MD: NDArray[Any]) -> float:
    """Computes the AUC of a classifier that discriminates two sets (Lopez-Paz and Oquab, 2017).

    It is .5 where both sets are of one distribution, and 1 where they do not overlap. The
    classifier is the share of the 30 nearest neighbours, elements standardised, cross-validated in
    5 folds. It sees differences in spread as well as in place, which a linear one does not.

    Elements that are constant but for rounding are not standardised: it would make differences
    between two machines as large as those between users.

    Args:
        first_ND: at least 10 vectors.
        second_MD: at least 10 vectors, independent of the first: not, say, the copies that a model
            made of these.

    Raises:
        ValueError: fewer vectors.
    """
    if min(len(first_ND), len(second_MD)) < MIN_VECTORS:
        raise ValueError(
            f"a two-sample AUC needs {MIN_VECTORS} vectors of each set, received "
            f"{len(first_ND)} and {len(second_MD)}"
        )
    vectors_VD = np.concatenate([first_ND, second_MD]).astype(np.float64)
    is_second_V = np.repeat([False, True], [len(first_ND), len(second_MD)])
    folds_V = _folds(is_second_V)
    num_neighbours = min(_NUM_NEIGHBOURS, len(vectors_VD) // 2)
    scores_V = np.zeros(len(vectors_VD), np.int64)
    for fold in range(_NUM_FOLDS):
        is_test_V = folds_V == fold
        train_ND, test_QD = _standardised(vectors_VD[~is_test_V], vectors_VD[is_test_V])
        scores_V[is_test_V] = _num_second_neighbours(
            train_ND, is_second_V[~is_test_V], test_QD, num_neighbours
        )
    return _auc(scores_V, is_second_V)


def constant_elements(vectors_VD: NDArray[Any]) -> NDArray[np.bool_]:
    """Finds the elements that are the same in all vectors but for the rounding of float32, [D].

    Args:
        vectors_VD: at least one vector.
    """
    is_constant_D: NDArray[np.bool_] = (
        vectors_VD.std(0, dtype=np.float64) <= _MIN_SPREAD * np.abs(vectors_VD).max()
    )
    return is_constant_D


def _folds(is_second_V: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Assigns vectors to folds, of each set as many to each (as scikit-learn stratifies)."""
    random = np.random.RandomState(_SEED)
    folds_V = np.zeros(len(is_second_V), np.int64)
    for label in (False, True):
        sizes = [np.count_nonzero(is_second_V[i::_NUM_FOLDS] == label) for i in range(_NUM_FOLDS)]
        numbers = np.repeat(np.arange(_NUM_FOLDS), sizes)
        random.shuffle(numbers)
        folds_V[is_second_V == label] = numbers
    return folds_V


def _standardised(train_ND: Floats, test_QD: Floats) -> tuple[Floats, Floats]:
    """Scales both by mean and standard deviation of the training vectors."""
    mean_D = train_ND.mean(0)
    scale_D = np.where(constant_elements(train_ND), 1.0, train_ND.std(0))
    return (train_ND - mean_D) / scale_D, (test_QD - mean_D) / scale_D


def _num_second_neighbours(
    train_ND: Floats, is_second_N: NDArray[np.bool_], test_QD: Floats, num_neighbours: int
) -> NDArray[np.int64]:
    """Counts the vectors of the second set among the nearest neighbours of each vector [Q]."""
    squares_N = np.square(train_ND).sum(1)
    counts = []
    size = max(1, _CELLS // len(train_ND))
    for start in range(0, len(test_QD), size):
        # Without |q|^2, which is the same for all neighbours of a vector.
        distances_QN = squares_N - 2 * test_QD[start : start + size] @ train_ND.T
        nearest_QK = np.argpartition(distances_QN, num_neighbours - 1, axis=1)[:, :num_neighbours]
        counts.append(is_second_N[nearest_QK].sum(1))
    return np.concatenate(counts)


def _auc(scores_V: NDArray[np.int64], is_second_V: NDArray[np.bool_]) -> float:
    """Computes the share of pairs in the right order, ties counted one half."""
    size = int(scores_V.max()) + 1
    first, second = (
        np.bincount(scores_V[is_second_V == label], minlength=size) for label in (0, 1)
    )
    below = np.cumsum(first) - first
    twice = int((second * (2 * below + first)).sum())
    return twice / (2 * int(first.sum()) * int(second.sum()))

"""Two-sample statistics against scikit-learn and against double loops."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mail_torchrec.drift.mmd import mean_discrepancy, median_distance
from mail_torchrec.drift.two_sample import two_sample_auc

Floats = NDArray[np.float64]
RANDOM = np.random.default_rng(7)


def by_scikit_learn(first: Floats, second: Floats) -> float:
    vectors = np.concatenate([first, second])
    labels = np.repeat([0, 1], [len(first), len(second)])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    neighbours = KNeighborsClassifier(min(30, len(vectors) // 2))
    scores = cross_val_predict(
        make_pipeline(StandardScaler(), neighbours),
        vectors,
        labels,
        cv=folds,
        method="predict_proba",
    )
    return float(roc_auc_score(labels, scores[:, 1]))


@pytest.mark.parametrize(
    ("num_first", "num_second", "dim"), [(10, 10, 3), (213, 97, 4), (150, 301, 40)]
)
@pytest.mark.parametrize("shift", [0.0, 0.3, 4.0])
def test_the_auc_is_scikit_learns(num_first: int, num_second: int, dim: int, shift: float) -> None:
    first = RANDOM.normal(size=(num_first, dim))
    second = RANDOM.normal(size=(num_second, dim)) + shift
    assert two_sample_auc(first, second) == pytest.approx(by_scikit_learn(first, second), abs=1e-12)


def test_constant_elements_that_differ_by_rounding_tell_nothing() -> None:
    first, second = RANDOM.normal(size=(2, 300, 4))
    first[:, 0], second[:, 0] = 0.7, 0.7 * (1 + 1e-7)
    assert by_scikit_learn(first, second) == 1  # so the reference is misled
    assert two_sample_auc(first, second) == pytest.approx(0.5, abs=0.07)


def test_an_auc_needs_ten_vectors() -> None:
    with pytest.raises(ValueError, match="10 vectors of each set, received 9 and 40"):
        two_sample_auc(np.zeros((9, 2)), np.zeros((40, 2)))


def by_loops(first: Floats, second: Floats, bandwidth: float) -> float:
    def mean_kernel(one: Floats, other: Floats, *, same: bool) -> float:
        values = [
            np.exp(-np.sum((x - y) ** 2) / (2 * bandwidth**2))
            for i, x in enumerate(one)
            for j, y in enumerate(other)
            if not (same and i == j)
        ]
        return float(np.mean(values))

    return (
        mean_kernel(first, first, same=True)
        + mean_kernel(second, second, same=True)
        - 2 * mean_kernel(first, second, same=False)
    )


@pytest.mark.parametrize("shift", [0.0, 0.5, 30.0])
def test_the_mmd_is_that_of_double_loops(shift: float) -> None:
    first, second = RANDOM.normal(size=(41, 3)) + 100, RANDOM.normal(size=(23, 3)) + 100 + shift
    vectors = np.concatenate([first, second])
    pairs = [np.linalg.norm(vectors[i] - vectors[j]) for i in range(len(vectors)) for j in range(i)]
    bandwidth = median_distance(vectors)
    assert bandwidth == pytest.approx(np.median(pairs))
    found = mean_discrepancy(first, second, bandwidth)
    assert found.squared == pytest.approx(by_loops(first, second, bandwidth), abs=1e-6)
    assert (found.squared > found.noise) == (shift > 0)


def test_a_twentieth_of_equal_sets_exceeds_the_noise() -> None:
    exceeded = 0
    for _ in range(200):
        first, second = RANDOM.normal(size=(2, 30, 3))
        found = mean_discrepancy(first, second, 2.0)
        exceeded += found.squared > found.noise
    assert 2 <= exceeded <= 21  # 10 expected; 3.5 standard errors


def test_equal_vectors_have_a_bandwidth_and_no_distance() -> None:
    same = np.ones((20, 4))
    assert median_distance(same) == 1 and mean_discrepancy(same, same, 1.0).squared == 0

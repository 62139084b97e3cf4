"""Single columns as predictors: ranks against scikit-learn, and no gain from chance."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mail_torchrec.data_check.column_profile import determination
from mail_torchrec.data_check.target_means import area_under_roc, number_codes, target_mean_auc

RANDOM = np.random.default_rng(1)
CLICKED = RANDOM.random(4000) < 0.2


def test_the_area_is_that_of_scikit_learn_with_ties() -> None:
    scores = RANDOM.integers(0, 7, 4000) + CLICKED * RANDOM.integers(0, 3, 4000)
    expected = roc_auc_score(CLICKED, scores)
    assert area_under_roc(scores.astype(float), CLICKED) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("codes", "low", "high"),
    [
        (CLICKED.astype(np.int64), 0.999, 1.0),
        (np.where(RANDOM.random(4000) < 0.7, CLICKED, ~CLICKED).astype(np.int64), 0.65, 0.75),
        (RANDOM.integers(0, 10, 4000), 0.45, 0.55),
        (RANDOM.integers(0, 3000, 4000), 0.45, 0.55),
        (np.arange(4000), 0.45, 0.55),
        (np.zeros(4000, np.int64), 0.5, 0.5),
    ],
    ids=["the label", "noisy", "chance", "many values", "an id of the row", "constant"],
)
def test_a_column_alone_has_the_area_that_it_earns(
    codes: np.ndarray[tuple[int], np.dtype[np.int64]], low: float, high: float
) -> None:
    assert low <= target_mean_auc(codes, CLICKED) <= high


def test_numbers_are_cut_at_quantiles_and_unknown_ones_are_apart() -> None:
    codes = number_codes(np.array([5.0, np.nan, 1.0, 3.0, 5.0]), num_bins=2)
    assert codes[1] == codes.max() and codes[0] == codes[4] > codes[2]
    assert (codes == codes[1]).sum() == 1


def test_a_value_follows_from_its_group_beyond_chance() -> None:
    groups = RANDOM.integers(0, 100, 3000)
    assert determination(groups % 7, groups) == pytest.approx(1.0)
    assert determination((RANDOM.random(3000) < 0.1).astype(np.int64), groups) < 0.1
    assert np.isnan(determination(groups, np.arange(3000)))

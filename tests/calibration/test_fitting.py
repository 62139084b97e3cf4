"""Calibrations find the true probabilities, keep the order, and refuse rows that say nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mail_torchrec.calibration.calibrator import Calibrator, Method
from mail_torchrec.calibration.fitting import calibrate
from mail_torchrec.export.calibrated_clicks import CalibratedClicks

METHODS: list[Method] = ["platt", "isotonic"]
Floats = np.ndarray[Any, np.dtype[np.float64]]


def sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))


def sample(
    num_rows: int, *, bend: bool = False, kept: float = 1.0
) -> tuple[Floats, Floats, Floats, Floats]:
    """Scores that are off, clicks, users, and the true logits; a share of the others is kept."""
    random = np.random.default_rng(5)
    scores = random.normal(-1, 1.5, num_rows)
    true = 0.6 * scores - 0.8
    true = np.where(scores > 0.4, -0.56, true) if bend else true
    clicks = random.random(num_rows) < sigmoid(true)
    rows = clicks | (random.random(num_rows) < kept)
    users = random.integers(-(2**62), 2**62, num_rows)
    return scores[rows], clicks[rows].astype(np.float32), users[rows], true[rows]


def test_platt_is_logistic_regression() -> None:
    scores, clicks, users, _ = sample(30_000)
    found = calibrate("platt", scores, clicks, users).calibrator
    reference = LogisticRegression(C=np.inf, tol=1e-9).fit(scores[:, None], clicks)
    expected = reference.decision_function(scores[:, None])
    assert np.abs(found(scores) - expected).max() < 1e-3  # Platt's targets are a little off 0 and 1


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_counts_as_so_many_rows(method: Method) -> None:
    scores, clicks, users, _ = sample(60_000)
    counts = np.random.default_rng(1).integers(0, 4, len(scores))
    repeated = [np.repeat(column, counts) for column in (scores, clicks, users)]
    expected = calibrate(method, *repeated)
    found = calibrate(method, scores, clicks, users, weights_R=counts / 8)
    assert found.clicks == clicks[counts > 0].sum()
    # Platt's targets, and the bins, count the rows themselves.
    bound = 2e-3 if method == "platt" else 0.05
    assert np.abs(found.calibrator(scores) - expected.calibrator(scores)).mean() < bound
    for part in ("before", "after"):
        one, other = getattr(found, part), getattr(expected, part)
        assert one.calibration == pytest.approx(other.calibration, rel=5e-3)
        assert one.log_loss == pytest.approx(other.log_loss, rel=1e-3)
    if method == "platt":
        weighted = LogisticRegression(C=np.inf, tol=1e-9)
        reference = weighted.fit(scores[:, None], clicks, sample_weight=counts)
        difference = found.calibrator(scores) - reference.decision_function(scores[:, None])
        assert np.abs(difference).max() < 1e-3


@pytest.mark.parametrize("kept", [1.0, 0.1])
@pytest.mark.parametrize("bend", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_calibrated_probabilities_are_true_whatever_share_of_the_negatives_is_kept(
    method: Method, bend: bool, kept: float
) -> None:
    scores, clicks, users, _ = sample(200_000, bend=bend, kept=kept)
    calibration = calibrate(method, scores, clicks, users, kept)
    scores, _, _, true = sample(200_000, bend=bend)
    found = sigmoid(calibration.calibrator(scores))
    assert found.mean() == pytest.approx(sigmoid(true).mean(), rel=0.02)
    assert calibration.after.calibration == pytest.approx(1, abs=0.01)
    assert abs(calibration.before.calibration - 1) > 0.05
    assert calibration.after.log_loss < calibration.before.log_loss
    if method == "isotonic" or not bend:
        assert np.abs(found - sigmoid(true)).mean() < 0.01


@pytest.mark.parametrize("method", METHODS)
def test_the_order_is_kept_and_the_graph_computes_what_the_reference_does(method: Method) -> None:
    scores, clicks, users, _ = sample(20_000, bend=True)
    calibrator = calibrate(method, scores, clicks, users).calibrator
    wide = np.linspace(-30, 30, 4001)
    expected = calibrator(wide)
    assert (np.diff(expected) > 0).all()
    found = CalibratedClicks(calibrator)(torch.tensor(wide, dtype=torch.float32)).numpy()
    assert (np.diff(found) > 0).all()
    assert np.abs(sigmoid(found) - sigmoid(expected)).max() < 2e-6


def test_equal_scores_have_one_probability() -> None:
    scores, clicks, users, _ = sample(20_000)
    scores = np.round(scores)
    calibrator = calibrate("isotonic", scores, clicks, users).calibrator
    for one in (-2.0, -1.0, 0.0):
        rate = clicks[scores == one].mean()
        assert sigmoid(calibrator(np.array([one])))[0] == pytest.approx(rate, rel=0.03)


def test_after_is_measured_on_users_that_it_was_not_fitted_on() -> None:
    scores, clicks, users, _ = sample(4000)
    found = calibrate("isotonic", scores, clicks, users)
    own = found.calibrator(scores)
    assert found.after.log_loss > np.mean(np.logaddexp(0, own) - clicks * own)


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_say_nothing_are_refused(method: Method) -> None:
    scores, clicks, users, _ = sample(20_000)
    few = {"platt": 150, "isotonic": 800}[method]
    cases = [
        (scores[:few], clicks[:few], users[:few], "should have at least"),
        (scores, np.zeros_like(clicks), users, "clicked rows and .* others, received 0 and 20000"),
        (scores, np.ones_like(clicks), users, "received 20000 and 0"),
        (-scores, clicks, users, "no better than chance"),
        (np.where(scores > 3, np.nan, scores), clicks, users, "finite"),
        (scores, clicks, np.zeros_like(users), "a few users"),
    ]
    for logits, labels, of_users, message in cases:
        with pytest.raises(ValueError, match=message):
            calibrate(method, logits, labels, of_users)


def test_knots_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="increasing numbers"):
        Calibrator(method="isotonic", logits=(0, 1), calibrated=(1, 0), first_slope=1, last_slope=1)

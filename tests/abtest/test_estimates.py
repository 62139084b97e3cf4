"""Intervals against brute force, against a bootstrap, and against the truth."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mail_torchrec.abtest.estimates import METRICS, compare_metric

Floats = NDArray[np.float64]


def arm(random: np.random.Generator, num_users: int, lift: float = 0.0) -> Floats:
    """Impressions, clicks, conversions; users who click more come more often."""
    rates = random.beta(2, 18, num_users)
    impressions = 1 + random.poisson(rates * 40)
    clicks = random.binomial(impressions, np.minimum(rates * (1 + lift), 1))
    return np.stack([impressions, clicks, random.binomial(clicks, 0.3)], axis=1).astype(np.float64)


@pytest.mark.parametrize("metric", METRICS)
def test_the_delta_method_agrees_with_a_bootstrap_of_users(metric: str) -> None:
    random = np.random.default_rng(3)
    sums_U3 = {"base": arm(random, 3000), "candidate": arm(random, 1500, lift=0.2)}
    delta, drawn = (
        compare_metric(sums_U3, metric),
        compare_metric(sums_U3, metric, num_resamples=2000),
    )
    for by_delta, by_bootstrap in (
        (delta.base, drawn.base),
        (delta.candidate, drawn.candidate),
        (delta.lift, drawn.lift),
    ):
        assert (
            by_delta is not None
            and by_bootstrap is not None
            and by_delta.value == by_bootstrap.value
        )
        width = by_delta.high - by_delta.low
        assert by_bootstrap.high - by_bootstrap.low == pytest.approx(
            width, rel=0.1
        )  # 2,000 resamples: some 3 %
        assert by_bootstrap.low == pytest.approx(by_delta.low, abs=0.08 * width)


def test_a_jackknife_over_users_gives_the_same_error() -> None:
    """Leaves one user out after another: an estimate that shares no formula with ours."""
    random = np.random.default_rng(5)
    sums_U3 = {"base": arm(random, 400), "candidate": arm(random, 300)}
    found = compare_metric(sums_U3, "CTR")
    assert found.candidate is not None
    sums = sums_U3["candidate"]
    without = (sums[:, 1].sum() - sums[:, 1]) / (sums[:, 0].sum() - sums[:, 0])
    error = np.sqrt((len(sums) - 1) / len(sums) * ((without - without.mean()) ** 2).sum())
    assert (found.candidate.high - found.candidate.low) / 2 == pytest.approx(1.96 * error, rel=0.01)


@pytest.mark.parametrize("metric", ["CTR", "CTCVR"])
@pytest.mark.parametrize("lift", [0.0, 0.14])
def test_95_of_100_intervals_hold_the_truth(metric: str, lift: float) -> None:
    """A/A logs (no lift, of which a twentieth are called one) and a lift of 14 %, the paper's."""
    random = np.random.default_rng(8)
    held = called = 0
    for _ in range(1000):
        found = compare_metric(
            {"base": arm(random, 400), "candidate": arm(random, 400, lift)}, metric
        )
        assert found.lift is not None and found.p is not None
        held += found.lift.low <= lift <= found.lift.high
        called += found.p < 0.05
    assert 0.925 < held / 1000 < 0.975  # 3.6 standard errors
    if lift == 0:
        assert called == 1000 - held  # the same question


def test_intervals_of_impressions_alone_would_be_too_narrow() -> None:
    """With 30 impressions a user, the clustered interval is far wider than a binomial one."""
    random = np.random.default_rng(9)
    rates = random.beta(0.5, 4.5, 1000)
    sums_U3 = np.stack(
        [np.full(1000, 30), random.binomial(30, rates), np.zeros(1000)], axis=1
    ).astype(np.float64)
    found = compare_metric({"base": sums_U3, "candidate": sums_U3}, "CTR")
    assert found.base is not None
    binomial = 2 * 1.96 * np.sqrt(found.base.value * (1 - found.base.value) / 30_000)
    assert found.base.high - found.base.low > 2 * binomial


def test_a_rate_of_nothing_has_no_lift() -> None:
    none = np.array([[3.0, 0.0, 0.0]] * 5)
    some = np.array([[3.0, 1.0, 0.0]] * 5)
    assert compare_metric({"base": none, "candidate": some}, "CTR").lift is None
    assert compare_metric({"base": none, "candidate": some}, "CVR").base is None
    found = compare_metric({"base": some, "candidate": some}, "CTR")
    assert (
        found.lift is not None and found.lift.value == 0 and found.p is None
    )  # no user differs from another

"""Rates of two arms and the candidate's lift, with intervals that know that a user's impressions belong together.

A rate is a ratio of sums over users, ``R = sum y / sum x`` (clicks over impressions), and users are
what was drawn at random, not impressions. The delta method gives its variance from the users' sums,
``Var R = Var(y - R x) / (U mean(x)^2)`` (Deng, Knoblich and Lu, KDD 2018); that of ``log
R_candidate - log R_base`` follows, and the lift's interval is taken there, where it is more nearly
normal. A bootstrap of users does without these approximations: each is drawn a Poisson number of
times (Chamandy et al. 2012).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.abtest.arms import ARMS, CLICKS, CONVERSIONS, IMPRESSIONS

FIGURES = {
    "CTR": (CLICKS, IMPRESSIONS),
    "CVR": (CONVERSIONS, CLICKS),
    "CTCVR": (CONVERSIONS, IMPRESSIONS),
}
"""Rate -> what is counted, of what; CTCVR is that of impressions which were clicked and led to a
conversion."""
_QUANTILE = 1.959963984540054
_CELLS = 4_000_000  # users times resamples worked on at a time: some 30 MB
_SEED = 20211101

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A rate of both arms; what cannot be said (nothing counted) is None."""

    base: Estimate | None
    candidate: Estimate | None
    lift: Estimate | None
    """``candidate / base - 1``."""
    p: float | None
    """Two-sided, of no lift; by the delta method."""


def compare(sums_U3: Mapping[str, Floats], figure: str, num_resamples: int = 0) -> Comparison:
    """Compares a rate.

    Args:
        sums_U3: arm -> impressions, clicks, conversions of each user.
        figure: of :data:`FIGURES`.
        num_resamples: of a bootstrap; 0 takes the delta method.
    """
    above, below = FIGURES[figure]
    rates = {arm: _rate(sums_U3[arm][:, above], sums_U3[arm][:, below]) for arm in ARMS}
    drawn = (
        {arm: _resampled(sums_U3[arm], i, num_resamples) for i, arm in enumerate(ARMS)}
        if num_resamples
        else {}
    )
    rates_B = {arm: _divided(drawn[arm][:, above], drawn[arm][:, below]) for arm in drawn}
    of_arms = {arm: _estimate(*rates[arm], rates_B.get(arm)) for arm in ARMS}
    (base, base_variance), (candidate, candidate_variance) = (rates[arm] for arm in ARMS)
    if not (base > 0 and candidate > 0):  # nan where nothing is below the line
        return Comparison(of_arms["base"], of_arms["candidate"], None, None)
    log_lift = math.log(candidate / base)
    error = math.sqrt(base_variance / base**2 + candidate_variance / candidate**2)
    low, high = (math.expm1(log_lift + sign * _QUANTILE * error) for sign in (-1, 1))
    if num_resamples:
        low, high = _quantiles(_divided(rates_B["candidate"], rates_B["base"]) - 1)
    p = math.erfc(abs(log_lift) / error / math.sqrt(2)) if error > 0 else None
    return Comparison(
        of_arms["base"], of_arms["candidate"], Estimate(math.expm1(log_lift), low, high), p
    )


def _rate(above_U: Floats, below_U: Floats) -> tuple[float, float]:
    """The ratio of sums, and its variance; nan where there is none."""
    if len(below_U) < 2 or not below_U.sum() > 0:
        return math.nan, math.nan
    rate = float(above_U.sum() / below_U.sum())
    return rate, float((above_U - rate * below_U).var(ddof=1) / len(below_U) / below_U.mean() ** 2)


def _estimate(rate: float, variance: float, rate_B: Floats | None) -> Estimate | None:
    if math.isnan(rate):
        return None
    half = _QUANTILE * math.sqrt(variance)
    low, high = (rate - half, rate + half) if rate_B is None else _quantiles(rate_B)
    return Estimate(rate, max(low, 0.0), high)


def _resampled(sums_U3: Floats, stream: int, num_resamples: int) -> Floats:
    """Sums of each resample, [B, 3]."""
    random = np.random.default_rng([_SEED, stream])
    at_a_time = max(1, _CELLS // len(sums_U3))
    sizes = [min(at_a_time, num_resamples - start) for start in range(0, num_resamples, at_a_time)]
    return np.concatenate([random.poisson(1.0, (size, len(sums_U3))) @ sums_U3 for size in sizes])


def _divided(above_B: Floats, below_B: Floats) -> Floats:
    result: Floats = np.divide(
        above_B, below_B, out=np.full(len(below_B), np.nan), where=below_B > 0
    )
    return result


def _quantiles(values_B: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(values_B, [0.025, 0.975])
    return float(low), float(high)

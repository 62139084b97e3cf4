"""Rates of the two arms and the candidate's lift, with intervals that treat users as the units.

A rate is a ratio of sums over users, ``R = sum y / sum x`` (clicks over impressions), and users are
what is drawn at random, not impressions. The delta method gives its variance from the users' sums,
``Var R = Var(y - R x) / (U mean(x)^2)`` (Deng, Knoblich and Lu, KDD 2018); that of ``log
R_candidate - log R_base`` follows, and the lift's interval is taken there, where it is more nearly
normal. A bootstrap of users does without these approximations: each is drawn a Poisson number of
times (Chamandy et al. 2012).

``U`` users, ``B`` resamples, columns ``3``: impressions, clicks, conversions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.abtest.arms import ARMS, CLICKS, CONVERSIONS, IMPRESSIONS

METRICS = {
    "CTR": (CLICKS, IMPRESSIONS),
    "CVR": (CONVERSIONS, CLICKS),
    "CTCVR": (CONVERSIONS, IMPRESSIONS),
}
"""Columns of each metric's numerator and denominator. CTCVR is the share of impressions that were
clicked and led to a conversion."""
QUANTILE = 1.959963984540054
"""Of the normal distribution, for intervals of 95 %."""
_CELLS = 4_000_000  # users times resamples in memory at a time: some 30 MB
_SEED = 20211101

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class MetricComparison:
    """Metric of both arms; None where it cannot be estimated (nothing was counted)."""

    base: Estimate | None
    candidate: Estimate | None
    lift: Estimate | None
    """``candidate / base - 1``."""
    p: float | None
    """Two-sided p of no lift, by the delta method."""


@dataclass(frozen=True)
class _Ratio:
    """Ratio of sums, its variance, and its values [B] in a bootstrap, if there was one."""

    value: float
    variance: float
    resampled_B: Float64s | None


def compare_metric(
    sums_U3: Mapping[str, Float64s], metric: str, num_resamples: int = 0
) -> MetricComparison:
    """Compares a metric of the two arms.

    Args:
        sums_U3: by arm, impressions, clicks and conversions of each user.
        metric: key of :data:`METRICS`.
        num_resamples: resamples of a bootstrap; 0 takes the delta method.
    """
    base, candidate = (
        _ratio(sums_U3[arm], metric, stream, num_resamples) for stream, arm in enumerate(ARMS)
    )
    estimates = _estimate(base), _estimate(candidate)
    if not (base.value > 0 and candidate.value > 0):  # nan where the denominator is 0
        return MetricComparison(*estimates, None, None)
    log_lift = math.log(candidate.value / base.value)
    error = math.sqrt(base.variance / base.value**2 + candidate.variance / candidate.value**2)
    if base.resampled_B is not None and candidate.resampled_B is not None:
        low, high = _quantiles(_divide(candidate.resampled_B, base.resampled_B) - 1)
    else:
        low, high = (math.expm1(log_lift + sign * QUANTILE * error) for sign in (-1, 1))
    p = math.erfc(abs(log_lift) / error / math.sqrt(2)) if error > 0 else None
    return MetricComparison(*estimates, Estimate(math.expm1(log_lift), low, high), p)


def _ratio(sums_U3: Float64s, metric: str, stream: int, num_resamples: int) -> _Ratio:
    numerator, denominator = METRICS[metric]
    value, variance = _delta_method(sums_U3[:, numerator], sums_U3[:, denominator])
    if not num_resamples:
        return _Ratio(value, variance, None)
    resampled_B3 = _resample(sums_U3, stream, num_resamples)
    return _Ratio(
        value, variance, _divide(resampled_B3[:, numerator], resampled_B3[:, denominator])
    )


def _delta_method(numerator_U: Float64s, denominator_U: Float64s) -> tuple[float, float]:
    """Computes the ratio of sums and its variance; nan where there is none."""
    num_users = len(denominator_U)
    if num_users < 2 or not denominator_U.sum() > 0:
        return math.nan, math.nan
    rate = float(numerator_U.sum() / denominator_U.sum())
    residuals_U = numerator_U - rate * denominator_U
    return rate, float(residuals_U.var(ddof=1) / num_users / denominator_U.mean() ** 2)


def _estimate(ratio: _Ratio) -> Estimate | None:
    if math.isnan(ratio.value):
        return None
    half = QUANTILE * math.sqrt(ratio.variance)
    low, high = ratio.value - half, ratio.value + half
    if ratio.resampled_B is not None:
        low, high = _quantiles(ratio.resampled_B)
    return Estimate(ratio.value, max(low, 0.0), high)


def _resample(sums_U3: Float64s, stream: int, num_resamples: int) -> Float64s:
    """Sums each resample of users, [B, 3]."""
    random = np.random.default_rng([_SEED, stream])
    batch_size = max(1, _CELLS // max(len(sums_U3), 1))
    starts = range(0, num_resamples, batch_size)
    sizes = [min(batch_size, num_resamples - start) for start in starts]
    return np.concatenate([random.poisson(1.0, (size, len(sums_U3))) @ sums_U3 for size in sizes])


def _divide(numerator_B: Float64s, denominator_B: Float64s) -> Float64s:
    """Divides, with nan where the denominator is 0."""
    undefined_B = np.full(len(denominator_B), np.nan)
    result: Float64s = np.divide(
        numerator_B, denominator_B, out=undefined_B, where=denominator_B > 0
    )
    return result


def _quantiles(values_B: Float64s) -> tuple[float, float]:
    low, high = np.nanquantile(values_B, [0.025, 0.975])
    return float(low), float(high)

"""Read-out by days since a user's first exposure, of users who were new then and of the others.

``R`` impressions, ``U`` users, columns ``3``: impressions, clicks, conversions (none here).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.abtest.arms import ARMS
from mail_torchrec.abtest.clustered_auc import ClusteredAuc, clustered_auc
from mail_torchrec.abtest.estimates import QUANTILE, Estimate, MetricComparison, compare_metric
from mail_torchrec.abtest.impressions import Impressions
from mail_torchrec.abtest.newness import StillNew, still_new
from mail_torchrec.data.parquet.arrow import Bools

DAYS = {"0": (0, 0), "1": (1, 1), "2": (2, 2), "3-6": (3, 6), "7+": (7, math.inf)}
"""Days since a user's first exposure, first and last of each group."""
USERS = ("new", "other")
"""Users who were new at their first exposure in the log, and the others."""

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class ArmDay:
    """One arm on some days; None where it cannot be estimated."""

    users: int
    impressions: int
    auc: Estimate | None
    calibration: Estimate | None
    """Predicted over observed clicks."""
    still_new: float | None
    """Share of the users on these days who are new at all their impressions of them."""


@dataclass(frozen=True)
class DayComparison:
    """Both arms on some days since the users' first exposure."""

    arms: Mapping[str, ArmDay]
    clicks: MetricComparison
    """Click rates and the candidate's lift."""
    auc_difference: Estimate | None
    """AUC of the candidate minus that of the base."""


@dataclass(frozen=True)
class SinceFirst:
    """Read-out by days since the first exposure."""

    days: Mapping[str, Mapping[str, DayComparison]]
    """By users (:data:`USERS`) and days (:data:`DAYS`), where both arms have impressions."""
    still_new: Mapping[str, StillNew]
    """Of each arm, how long the users who were new at first stay so."""


def read_since_first(log: Impressions, num_resamples: int = 0) -> SinceFirst:
    """Compares the arms by days since each user's first exposure.

    A user's first exposure is the first in the log, by whatever version. Users are new at first
    where any impression of their first day says so, as a user who is new may have ceased to be so
    by the evening.

    Args:
        log: impressions of the log.
        num_resamples: resamples of a bootstrap for click rates; 0 takes the delta method.
    """
    since_R, was_new_R = _since_first_exposure(log)
    newness = {
        name: still_new(log, since_R, was_new_R & (log.arms_R == arm))
        for arm, name in enumerate(ARMS)
    }
    days = {
        users: _days(log, since_R, is_user_R, num_resamples)
        for users, is_user_R in zip(USERS, (was_new_R, ~was_new_R), strict=True)
    }
    return SinceFirst(days, newness)


def _since_first_exposure(log: Impressions) -> tuple[NDArray[np.int32], Bools]:
    """Computes the days since each user's first exposure, and who was new then, [R] each."""
    first_U = np.full(log.num_users, np.iinfo(np.int32).max, np.int32)
    np.minimum.at(first_U, log.users_R, log.days_R)
    since_R = log.days_R - first_U[log.users_R]
    was_new_U = np.zeros(log.num_users, np.bool_)
    was_new_U[log.users_R[(since_R == 0) & log.is_new_R]] = True
    return since_R, was_new_U[log.users_R]


def _days(
    log: Impressions, since_R: NDArray[np.int32], is_user_R: Bools, num_resamples: int
) -> dict[str, DayComparison]:
    """Compares the arms by days, where both have impressions of these users."""
    found = {}
    for name, (low, high) in DAYS.items():
        rows_R = is_user_R & (since_R >= low) & (since_R <= high)
        if all((rows_R & (log.arms_R == arm)).any() for arm in range(len(ARMS))):
            found[name] = _compare(log, rows_R, num_resamples)
    return found


def settled_from(lifts: Mapping[str, Estimate | None]) -> str | None:
    """Finds the days from which on no difference is clear of 0; None where the last one is.

    Args:
        lifts: difference of the arms by days, in their order; None where there is none.
    """
    settled = None
    for name, lift in lifts.items():
        if lift is None:
            continue
        if not lift.low <= 0 <= lift.high:
            settled = None
        elif settled is None:
            settled = name
    return settled


def _compare(log: Impressions, rows_R: Bools, num_resamples: int) -> DayComparison:
    sums: dict[str, Float64s] = {}
    arms: dict[str, ArmDay] = {}
    aucs: list[ClusteredAuc] = []
    for arm, name in enumerate(ARMS):
        rows = np.flatnonzero(rows_R & (log.arms_R == arm))
        sums[name] = _user_sums(log.users_R[rows], log.clicks_R[rows])
        auc = _auc(log, rows)
        aucs.append(auc)
        arms[name] = ArmDay(
            users=len(sums[name]),
            impressions=len(rows),
            auc=_estimate(*auc, lowest=0.0, highest=1.0),
            calibration=_calibration(log, rows),
            still_new=_share_still_new(log, rows),
        )
    base, candidate = aucs
    difference = candidate.value - base.value, candidate.variance + base.variance
    return DayComparison(arms, compare_metric(sums, "CTR", num_resamples), _estimate(*difference))


def _user_sums(users_R: NDArray[np.int32], clicks_R: NDArray[np.int8]) -> Float64s:
    """Sums impressions and clicks by user, [U, 3]."""
    users, indices_R = np.unique(users_R, return_inverse=True)
    impressions_U = np.bincount(indices_R, minlength=len(users))
    clicks_U = np.bincount(indices_R, clicks_R, minlength=len(users))
    return np.stack([impressions_U, clicks_U, np.zeros(len(users))], axis=1).astype(np.float64)


def _auc(log: Impressions, rows: NDArray[np.int64]) -> ClusteredAuc:
    if log.scores_R is None:
        return ClusteredAuc(math.nan, math.nan)
    return clustered_auc(log.scores_R[rows], log.clicks_R[rows], log.users_R[rows])


def _calibration(log: Impressions, rows: NDArray[np.int64]) -> Estimate | None:
    """Divides predicted by observed clicks; the interval is by the delta method on the log scale.

    Users' residuals ``p - C y`` have the variance of the ratio of sums C, as that of rates has.
    """
    if log.scores_R is None or not log.clicks_R[rows].any():
        return None
    users, indices_R = np.unique(log.users_R[rows], return_inverse=True)
    predicted_U: Float64s = np.bincount(indices_R, log.scores_R[rows]).astype(np.float64)
    clicks_U: Float64s = np.bincount(indices_R, log.clicks_R[rows]).astype(np.float64)
    if len(users) < 2 or not predicted_U.any():
        return None
    return _ratio_of_sums(predicted_U, clicks_U)


def _ratio_of_sums(numerator_U: Float64s, denominator_U: Float64s) -> Estimate:
    ratio = float(numerator_U.sum() / denominator_U.sum())
    residuals_U = numerator_U - ratio * denominator_U
    variance = float(residuals_U.var(ddof=1) * len(residuals_U) / numerator_U.sum() ** 2)
    low, high = (ratio * math.exp(sign * QUANTILE * math.sqrt(variance)) for sign in (-1, 1))
    return Estimate(ratio, low, high)


def _share_still_new(log: Impressions, rows: NDArray[np.int64]) -> float | None:
    """Computes the share of users of whom all impressions on these rows say that they are new."""
    users, indices_R = np.unique(log.users_R[rows], return_inverse=True)
    is_old_U = np.bincount(indices_R, ~log.is_new_R[rows], minlength=len(users)) > 0
    return float(1 - is_old_U.mean()) if len(users) else None


def _estimate(
    value: float, variance: float, lowest: float = -math.inf, highest: float = math.inf
) -> Estimate | None:
    if math.isnan(value) or math.isnan(variance):
        return None
    half = QUANTILE * math.sqrt(variance)
    return Estimate(value, max(value - half, lowest), min(value + half, highest))

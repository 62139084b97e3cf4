"""Days until a user is no longer new: the Kaplan-Meier estimate over users.

``R`` impressions, ``U`` users.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.abtest.impressions import Impressions
from mail_torchrec.data.parquet.arrow import Bools

_MAX_DAYS = 60  # of the curve that is kept


@dataclass(frozen=True)
class StillNew:
    """Users who were new at their first exposure, and how long they stay so."""

    users: int
    stopped: int
    """Of them those with an impression at which they are new no more."""
    shares: list[float]
    """Share of users who are still new after each day, from day 0 on; at most of 60 days."""

    @property
    def half_day(self) -> int | None:
        """First day of the curve by whose end half of the users are new no more, or None."""
        return next((day for day, share in enumerate(self.shares) if share <= 0.5), None)


def still_new(log: Impressions, since_R: NDArray[np.int32], rows_R: Bools) -> StillNew:
    """Estimates the share of users who are still new by days (Kaplan and Meier, JASA 1958).

    A user stops being new on the day of the first impression that says so; one who has none leaves
    the estimate after the day of the last impression.

    Args:
        log: impressions of the log.
        since_R: days since each user's first exposure.
        rows_R: impressions of the users who were new at first.
    """
    if not rows_R.any():
        return StillNew(0, 0, [])
    end_U, has_stopped_U = _ends(log.users_R[rows_R], since_R[rows_R], log.is_new_R[rows_R])
    share = 1.0
    shares: list[float] = []
    for day in range(min(int(end_U.max()), _MAX_DAYS - 1) + 1):
        num_stopped = np.count_nonzero((end_U == day) & has_stopped_U)
        share *= 1 - num_stopped / np.count_nonzero(end_U >= day)
        shares.append(float(share))
    return StillNew(len(end_U), int(has_stopped_U.sum()), shares)


def _ends(
    users_R: NDArray[np.int32], days_R: NDArray[np.int32], is_new_R: Bools
) -> tuple[NDArray[np.int64], Bools]:
    """Finds the day on which each user stops or is last seen, and whether it stops, [U] each."""
    users, indices_R = np.unique(users_R, return_inverse=True)
    last_U = np.zeros(len(users), np.int64)
    np.maximum.at(last_U, indices_R, days_R)
    never = np.iinfo(np.int64).max
    stop_U = np.full(len(users), never)
    np.minimum.at(stop_U, indices_R[~is_new_R], days_R[~is_new_R])
    has_stopped_U = stop_U < never
    return np.where(has_stopped_U, stop_U, last_U), has_stopped_U

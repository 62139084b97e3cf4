"""Sums a user -> the two arms of a test, and what is wrong with how users came into them."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.abtest.exposures import Exposures
from mail_torchrec.data.parquet.arrow import Bools
from mail_torchrec.inference.traffic_split import Split

IMPRESSIONS, CLICKS, CONVERSIONS = range(3)
ARMS = ("base", "candidate")


@dataclass(frozen=True)
class Assignment:
    """Which versions are an arm, and which users should have met the candidate."""

    candidate: tuple[str, ...]
    """An arm may be several versions one after another, as when its model is trained anew every
    day."""
    base: tuple[str, ...] = ()
    """Empty: the log's only other version."""
    share: float | None = None
    """Of users that the candidate was given; None: not known, not checked."""
    split: Split | None = None
    """The server's rule; each user is held against it."""


@dataclass(frozen=True)
class Mismatch:
    """Pearson's chi-square of the arms' users against the share (one degree of freedom)."""

    expected: float
    found: float
    """The share of users that met the candidate."""
    p: float


@dataclass(frozen=True)
class Arms:
    """The users of each arm, ``U`` of them, by what they did."""

    versions: dict[str, list[str]]
    """Arm -> its versions."""
    sums_U3: dict[str, dict[str, NDArray[np.float64]]]
    """Part (all; new and old where the log says it) -> arm -> impressions, clicks, conversions of
    each user who has impressions there."""
    left_out: dict[str, int]
    """Version of neither arm -> its impressions."""
    num_both: int
    """Users who met both arms; they are in neither."""
    num_misplaced: int | None
    """Users who met the version that the split does not give them; they count where they were. None
    without a split."""
    mismatch: Mismatch | None

    @property
    def num_users(self) -> int:
        """Users who met either arm or both."""
        return self.num_both + sum(len(sums_U3) for sums_U3 in self.sums_U3["all"].values())


def make_arms(log: Exposures, assignment: Assignment) -> Arms:
    """Deals the log's users to the arms.

    Users who met both arms are left out: what they did cannot be told apart.

    Raises:
        ValueError: a version that the log does not have, base and candidate alike, or nobody in an
            arm.
    """
    versions = _versions(log, assignment)
    encoded = log.versions.dictionary_encode()
    names, version_of_L = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    chosen = {*versions["base"], *versions["candidate"]}
    met = {
        arm: np.isin(version_of_L, [names.index(version) for version in versions[arm]])
        for arm in ARMS
    }
    user_of_L = log.user_of_L
    num_users = int(user_of_L.max()) + 1
    seen_U = {arm: np.bincount(user_of_L[met[arm]], minlength=num_users) > 0 for arm in ARMS}
    both_U = seen_U["base"] & seen_U["candidate"]
    in_arm_U = {arm: seen_U[arm] & ~both_U for arm in ARMS}
    if empty := [arm for arm in ARMS if not in_arm_U[arm].any()]:
        raise ValueError(
            f"the {empty[0]} ({', '.join(versions[empty[0]])}) should have users of its own: all "
            "of them met the other arm too"
        )
    return Arms(
        versions=versions,
        sums_U3={
            part: _of_part(log, rows_L, met, in_arm_U, user_of_L)
            for part, rows_L in _parts(log).items()
        },
        left_out={
            name: int(log.impressions_L[version_of_L == i].sum())
            for i, name in enumerate(names)
            if name not in chosen
        },
        num_both=int(both_U.sum()),
        num_misplaced=None
        if assignment.split is None
        else _misplaced(log, assignment.split, met, in_arm_U, user_of_L),
        mismatch=_mismatch(assignment, *(int(in_arm_U[arm].sum()) for arm in ARMS)),
    )


def _versions(log: Exposures, assignment: Assignment) -> dict[str, list[str]]:
    known = sorted(log.versions.unique().to_pylist())
    base, candidate = (
        list(dict.fromkeys(assignment.base)),
        list(dict.fromkeys(assignment.candidate)),
    )
    if unknown := [name for name in (*candidate, *base) if name not in known]:
        raise ValueError(
            f"version '{unknown[0]}' should be one that the log has ({', '.join(known)})"
        )
    if alike := set(base) & set(candidate):
        raise ValueError(f"version '{min(alike)}' should be base or candidate, not both")
    if not base:
        base = [name for name in known if name not in candidate]
        if len(base) != 1:
            raise ValueError(
                f"the log has {len(known)} versions ({', '.join(known)}): say by --base which one "
                "the candidate is held against"
            )
    return {"base": base, "candidate": candidate}


def _parts(log: Exposures) -> dict[str, Bools]:
    everyone = np.ones(len(log.users), np.bool_)
    return {"all": everyone} | (
        {} if log.is_new_L is None else {"new": log.is_new_L, "old": ~log.is_new_L}
    )


def _of_part(
    log: Exposures,
    rows_L: Bools,
    met: dict[str, Bools],
    in_arm_U: dict[str, Bools],
    user_of_L: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    counts = (
        log.impressions_L,
        log.clicks_L,
        np.zeros_like(log.clicks_L) if log.conversions_L is None else log.conversions_L,
    )
    sums = {}
    for arm in ARMS:
        lines = np.flatnonzero(rows_L & met[arm] & in_arm_U[arm][user_of_L])
        sums_U3 = np.stack(
            [
                np.bincount(user_of_L[lines], weights=count_L[lines], minlength=len(in_arm_U[arm]))
                for count_L in counts
            ],
            axis=1,
        )
        sums[arm] = sums_U3[sums_U3[:, IMPRESSIONS] > 0].astype(np.float64)
    return sums


def _misplaced(
    log: Exposures,
    split: Split,
    met: dict[str, Bools],
    in_arm_U: dict[str, Bools],
    user_of_L: NDArray[np.int64],
) -> int:
    takes_L = split.takes_all(log.users)
    wrong_L = (met["base"] & takes_L) | (met["candidate"] & ~takes_L)
    return len(
        np.unique(user_of_L[wrong_L & (in_arm_U["base"] | in_arm_U["candidate"])[user_of_L]])
    )


def _mismatch(assignment: Assignment, num_base: int, num_candidate: int) -> Mismatch | None:
    share = (
        assignment.share
        if assignment.share is not None
        else assignment.split.share
        if assignment.split
        else None
    )
    if share is None:
        return None
    total = num_base + num_candidate
    expected = total * share
    # With share 0 or 1 there are no two arms to be held against it.
    chi_square = (
        math.inf
        if not 0 < share < 1
        else (num_candidate - expected) ** 2 * (1 / expected + 1 / (total - expected))
    )
    return Mismatch(share, num_candidate / total, math.erfc(math.sqrt(chi_square / 2)))

"""Assignment of the log's users to the two arms of an A/B test, and checks of that assignment.

``L`` lines of the log, ``U`` users, columns ``3``: impressions, clicks, conversions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.abtest.exposures import Exposures
from mail_torchrec.abtest.sample_ratio import SampleRatioCheck, check_sample_ratio
from mail_torchrec.data.parquet.arrow import Bools
from mail_torchrec.inference.traffic_split import TrafficSplit
from mail_torchrec.reporting.cohorts import ITEM_COHORTS

IMPRESSIONS, CLICKS, CONVERSIONS = range(3)
ARMS = ("base", "candidate")


@dataclass(frozen=True)
class ArmAssignment:
    """Versions of the two arms, and the share of users that should see the candidate."""

    candidate: tuple[str, ...]
    """Versions of the candidate arm; several where they served one after another, as when the
    model is trained anew every day."""
    base: tuple[str, ...] = ()
    """Versions of the base arm; empty for the log's only other version."""
    share: float | None = None
    """Share of users given to the candidate; None where it is not known and not checked."""
    split: TrafficSplit | None = None
    """Traffic split of the server, which each user is checked against."""


@dataclass(frozen=True)
class ExperimentArms:
    """Users of each arm by their sums, and what is wrong with the assignment."""

    versions: dict[str, list[str]]
    """Versions of each arm."""
    sums_U3: dict[str, dict[str, NDArray[np.float64]]]
    """By cohort (all; new and old users, and items, where the log says it) and arm, the
    impressions, clicks and conversions of each user with impressions there."""
    other_impressions: dict[str, int]
    """Impressions of each version that belongs to neither arm."""
    num_in_both: int
    """Users who saw both arms; they are in neither."""
    num_misassigned: int | None
    """Users who saw the version that the split does not give them; they count where they were.
    None without a split."""
    sample_ratio: SampleRatioCheck | None
    """Check of the arms' numbers of users; None where their shares are not known."""

    @property
    def num_users(self) -> int:
        """Users who saw either arm or both."""
        return self.num_in_both + sum(len(sums_U3) for sums_U3 in self.sums_U3["all"].values())


@dataclass(frozen=True)
class _Membership:
    """Arms of lines and users."""

    user_indices_L: NDArray[np.int64]
    lines: Mapping[str, Bools]
    """By arm, the lines [L] of its versions."""
    users: Mapping[str, Bools]
    """By arm, the users [U] who saw it and not the other."""
    num_in_both: int


def assign_arms(log: Exposures, assignment: ArmAssignment) -> ExperimentArms:
    """Assigns the log's users to the arms.

    Users who saw both arms are left out: the effects of the two cannot be told apart.

    Raises:
        ValueError: a version that the log does not have, or that is in both arms, or an arm
            without users.
    """
    versions = _arm_versions(log, assignment)
    members = _membership(log, versions)
    for arm in ARMS:
        if not members.users[arm].any():
            raise ValueError(
                f"the {arm} ({', '.join(versions[arm])}) should have users of its own: all of "
                "them saw the other arm too"
            )
    num_base, num_candidate = (int(members.users[arm].sum()) for arm in ARMS)
    split = assignment.split
    share = split.share if assignment.share is None and split else assignment.share
    return ExperimentArms(
        versions=versions,
        sums_U3={
            cohort: _user_sums(log, is_cohort_L, members)
            for cohort, is_cohort_L in _cohorts(log).items()
        },
        other_impressions=_other_impressions(log, versions),
        num_in_both=members.num_in_both,
        num_misassigned=None if split is None else _num_misassigned(log, split, members),
        sample_ratio=None if share is None else check_sample_ratio(share, num_base, num_candidate),
    )


def _different(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _arm_versions(log: Exposures, assignment: ArmAssignment) -> dict[str, list[str]]:
    known = sorted(log.versions.unique().to_pylist())
    base, candidate = (_different(names) for names in (assignment.base, assignment.candidate))
    if unknown := {*candidate, *base}.difference(known):
        raise ValueError(
            f"version '{min(unknown)}' should be one that the log has ({', '.join(known)})"
        )
    if in_both := set(base) & set(candidate):
        raise ValueError(f"version '{min(in_both)}' should be base or candidate, not both")
    if not base:
        base = [name for name in known if name not in candidate]
        if len(base) != 1:
            raise ValueError(
                f"the log has {len(known)} versions ({', '.join(known)}): say by --base which one "
                "the candidate is held against"
            )
    return {"base": base, "candidate": candidate}


def _membership(log: Exposures, versions: Mapping[str, list[str]]) -> _Membership:
    names, codes_L = _version_codes(log)
    user_indices_L = log.user_indices_L
    num_users = int(user_indices_L.max()) + 1
    lines = {arm: np.isin(codes_L, [names.index(name) for name in versions[arm]]) for arm in ARMS}
    saw = {arm: np.bincount(user_indices_L[lines[arm]], minlength=num_users) > 0 for arm in ARMS}
    both_U = saw["base"] & saw["candidate"]
    users = {arm: saw[arm] & ~both_U for arm in ARMS}
    return _Membership(user_indices_L, lines, users, int(both_U.sum()))


def _cohorts(log: Exposures) -> dict[str, Bools]:
    """Lists the lines [L] of each cohort."""
    everyone = {"all": np.ones(len(log.users), np.bool_)}
    users = {} if log.is_new_L is None else {"new": log.is_new_L, "old": ~log.is_new_L}
    if (is_new_item_L := log.is_new_item_L) is None:
        return everyone | users
    items = dict(zip(ITEM_COHORTS, (is_new_item_L, ~is_new_item_L), strict=True))
    both = {
        f"{user}_users_{name}": is_user_L & is_item_L
        for user, is_user_L in users.items()
        for name, is_item_L in items.items()
    }
    return everyone | users | items | both


def _counts(log: Exposures) -> NDArray[np.int64]:
    no_conversions_L = np.zeros_like(log.clicks_L)
    conversions_L = no_conversions_L if log.conversions_L is None else log.conversions_L
    return np.stack([log.impressions_L, log.clicks_L, conversions_L], axis=1)


def _user_sums(
    log: Exposures, is_cohort_L: Bools, members: _Membership
) -> dict[str, NDArray[np.float64]]:
    """Sums the lines of a cohort by user [U, 3], for each arm."""
    counts_L3 = _counts(log)
    sums = {}
    for arm in ARMS:
        in_arm_L = members.users[arm][members.user_indices_L]
        lines = np.flatnonzero(is_cohort_L & members.lines[arm] & in_arm_L)
        sums_U3 = np.zeros((len(members.users[arm]), 3))
        np.add.at(sums_U3, members.user_indices_L[lines], counts_L3[lines])
        sums[arm] = sums_U3[sums_U3[:, IMPRESSIONS] > 0]
    return sums


def _other_impressions(log: Exposures, versions: Mapping[str, list[str]]) -> dict[str, int]:
    names, codes_L = _version_codes(log)
    in_arms = {*versions["base"], *versions["candidate"]}
    return {
        name: int(log.impressions_L[codes_L == code].sum())
        for code, name in enumerate(names)
        if name not in in_arms
    }


def _version_codes(log: Exposures) -> tuple[list[str], NDArray[np.int64]]:
    """Encodes the version of each line as an index [L] into a list of versions."""
    encoded = log.versions.dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _num_misassigned(log: Exposures, split: TrafficSplit, members: _Membership) -> int:
    """Counts the users of either arm whom the split gives to the other one."""
    assigned_L = split.assigned_mask(log.users)
    wrong_L = (members.lines["base"] & assigned_L) | (members.lines["candidate"] & ~assigned_L)
    in_arms_U = members.users["base"] | members.users["candidate"]
    wrong_L &= in_arms_U[members.user_indices_L]
    return len(np.unique(members.user_indices_L[wrong_L]))

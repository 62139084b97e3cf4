"""Read-out by days since the first exposure, in words, as tables and for JSON."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mail_torchrec.abtest.arms import ARMS
from mail_torchrec.abtest.estimates import Estimate
from mail_torchrec.abtest.formatting import estimate_text, percent
from mail_torchrec.abtest.since_first import DAYS, DayComparison, SinceFirst, settled_from
from mail_torchrec.reporting.markdown import markdown_table

_NAMES = {"new": "users who were new at first", "other": "other users"}


def lifts_by_day(days: Mapping[str, DayComparison]) -> dict[str, Estimate | None]:
    """Lists the lifts of the click rate by days."""
    return {name: found.clicks.lift for name, found in days.items()}


def differences_by_day(days: Mapping[str, DayComparison]) -> dict[str, Estimate | None]:
    """Lists the differences of AUC by days."""
    return {name: found.auc_difference for name, found in days.items()}


def since_first_text(found: SinceFirst) -> str:
    """Formats the read-out as Markdown that reads well on a terminal."""
    lines = ["## By days since the first exposure", "", *(f"- {one}" for one in sentences(found))]
    for users, days in found.days.items():
        if days:
            lines += ["", f"{_NAMES[users].capitalize()}:", "", _table(days)]
    lines.append(
        "A user's first exposure is the first in the log. AUC and calibration (predicted over "
        "observed clicks) are of what each version chose to show; 95 % intervals over users."
    )
    return "\n".join(lines) + "\n"


def since_first_content(found: SinceFirst) -> dict[str, Any]:
    """Collects all numbers, for JSON."""
    return {
        "days": {
            users: {name: asdict(day) for name, day in days.items()}
            for users, days in found.days.items()
        },
        "still_new": {
            arm: asdict(newness) | {"half_day": newness.half_day}
            for arm, newness in found.still_new.items()
        },
        "settled_from": {
            "CTR": settled_from(lifts_by_day(found.days["new"])),
            "AUC": settled_from(differences_by_day(found.days["new"])),
        },
        "sentences": sentences(found),
    }


def sentences(found: SinceFirst) -> list[str]:
    """Says when users stop being new, and from when on the arms no longer differ for them."""
    days = found.days["new"]
    if not days:
        return ["no user was new at first in both arms"]
    said = [_newness_sentence(found)]
    said.append(f"click rate of {_NAMES['new']}: {_settled_sentence(lifts_by_day(days))}")
    differences = differences_by_day(days)
    if any(differences.values()):
        said.append(f"AUC of {_NAMES['new']}: {_settled_sentence(differences)}")
    return said


def _newness_sentence(found: SinceFirst) -> str:
    parts = []
    for arm in ARMS:
        newness = found.still_new[arm]
        stopped = f"{newness.stopped:,} of {newness.users:,} stop being new in the log"
        half = newness.half_day
        last = len(newness.shares) - 1  # of the curve, which may end before the log
        by = f"half of them by day {half}"
        if half is None:
            by = f"fewer than half of them by day {last}"
        parts.append(f"{arm}: {stopped}, {by}")
    return f"{_NAMES['new']}: {'; '.join(parts)}"


def _settled_sentence(lifts: Mapping[str, Estimate | None]) -> str:
    last = max((name for name, lift in lifts.items() if lift), key=list(DAYS).index, default=None)
    if last is None:
        return "nothing was counted that could differ"
    settled = settled_from(lifts)
    if settled is None:
        return f"the arms still differ on day {last}, the last in the log"
    differ = [name for name, lift in lifts.items() if lift and not lift.low <= 0 <= lift.high]
    if not differ:
        return "no difference between the arms is clear of chance on any day"
    return (
        f"no difference is clear of chance from day {settled} on (on day {', '.join(differ)} it is)"
    )


def _table(days: Mapping[str, DayComparison]) -> str:
    has_scores = any(day.arms[arm].calibration for day in days.values() for arm in ARMS)
    header = ["day, arm", "users", "impressions", "still new", "CTR", "lift"]
    header += ["AUC", "calibration"] if has_scores else []
    rows = [
        _row(f"{name}, {arm}", day, arm, has_scores=has_scores)
        for name, day in days.items()
        for arm in ARMS
    ]
    return markdown_table(header, rows)


def _row(title: str, day: DayComparison, arm: str, *, has_scores: bool) -> list[str]:
    one = day.arms[arm]
    rate = day.clicks.base if arm == "base" else day.clicks.candidate
    cells = [
        title,
        f"{one.users:,}",
        f"{one.impressions:,}",
        "-" if one.still_new is None else percent(one.still_new, 0),
        estimate_text(rate),
        "" if arm == "base" else estimate_text(day.clicks.lift, "+"),
    ]
    return [*cells, _number(one.auc), _number(one.calibration)] if has_scores else cells


def _number(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"

"""Closing sentences of a diagnosis: remedies for new users and new items, and missing data."""

import re
from dataclasses import dataclass
from enum import StrEnum

from mail_torchrec.diagnose.cold_rows import ColdRows
from mail_torchrec.diagnose.new_items import NewItemValue
from mail_torchrec.diagnose.new_users import NewUserValue
from mail_torchrec.reporting.intervals import Interval

SMALLEST_GAIN = 0.002
"""AUC below which a gain is reported as none, however narrow its interval is."""
_SMALLEST_SHARE = 0.1


class Remedy(StrEnum):
    """Something to try."""

    MAIL = "MAIL"
    DROPOUT = "behaviour dropout"
    CROSSES = "a tower with attribute crosses"
    CONTENT = "content vectors"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Verdict:
    """Remedies to try, with the reasons.

    Args:
        new_users: remedies for new users.
        new_items: remedies for new items.
        sentences: in the order of reading; the last one is about data.
    """

    new_users: list[Remedy]
    new_items: list[Remedy]
    sentences: list[str]


def is_gain(gain: Interval | None) -> bool:
    """Returns whether a gain is at least .002 AUC, with an interval above 0."""
    return gain is not None and gain.mean >= SMALLEST_GAIN and (gain.low or 0) > 0


def judge(users: NewUserValue, items: NewItemValue, cold: ColdRows) -> Verdict:
    """Words the verdict.

    Args:
        users: answers for new users.
        items: answers for new items.
        cold: cold rows of the files.
    """
    remedies, sentences = _judge_users(users, cold)
    of_items, more = _judge_items(items, cold)
    return Verdict(remedies, of_items, [*sentences, *more])


def _judge_users(users: NewUserValue, cold: ColdRows) -> tuple[list[Remedy], list[str]]:
    if users.histories is None:
        return [], [f"New users: no answer, since {users.why_none}."]
    rows = f"{cold.test_new_users:.1%} of the test rows are of new users"
    if not is_gain(users.histories):
        return [Remedy.NOTHING], [
            f"New users: nothing will help. Histories are worth {gain_text(users.histories)} AUC "
            f"beside all other columns, so a remedy has nothing to give back ({rows}).",
            "Data that would help: histories that say more about these clicks (longer ones, of "
            "other actions, up to the last minute).",
        ]
    if users.predicted is None:
        return [Remedy.NOTHING], [
            f"New users: nothing will help as the data is. Histories are worth "
            f"{gain_text(users.histories)} AUC, and there is no attribute to predict them from "
            f"({rows}).",
            "Data that would help: attributes of users (where they come from, what they told when "
            "they signed up, their device, their first clicks).",
        ]
    return _choose_for_users(users, rows)


def _choose_for_users(users: NewUserValue, rows: str) -> tuple[list[Remedy], list[str]]:
    remedies, reasons = [], []
    assert users.recovered is not None and users.attribute_share is not None
    if is_gain(users.predicted) and users.recovered.mean >= _SMALLEST_SHARE:
        remedies.append(Remedy.MAIL)
        reasons.append(
            f"histories predicted from attributes recover {share_text(users.recovered)} of what "
            f"histories are worth ({gain_text(users.histories)} AUC)"
        )
    if is_gain(users.crosses):
        remedies.append(Remedy.CROSSES)
        reasons.append(
            f"attributes crossed with the item are worth {gain_text(users.crosses)} AUC, which "
            "sums of embeddings hardly find"
        )
    if is_gain(users.empty_input):
        remedies.append(Remedy.DROPOUT)
        reasons.append(
            f"a model that is used to histories loses {gain_text(users.empty_input)} AUC where "
            "they lack: dropout, mean fill and MAIL repair that alike"
        )
    if remedies:
        first = f"New users: try {' and '.join(remedies)}, for {'; '.join(reasons)} ({rows})."
    else:
        remedies = [Remedy.NOTHING]
        first = (
            f"New users: nothing will help as the data is. Histories are worth "
            f"{gain_text(users.histories)} AUC, but those predicted from attributes add "
            f"{gain_text(users.predicted)} to trees that have the attributes ({rows})."
        )
    last = "Data that would help: attributes that tell more of what a user likes"
    if users.explained:
        best = max(users.explained.values())
        last += f" (they explain at most {max(best, 0):.0%} of any statistic of histories)"
    enough = Remedy.MAIL in remedies and users.recovered.mean > 0.5
    return remedies, [first] if enough else [first, f"{last}."]


def _judge_items(items: NewItemValue, cold: ColdRows) -> tuple[list[Remedy], list[str]]:
    if items.known is None or items.columns is None:
        return [], [f"New items: no answer, since {items.why_none}."]
    rows = f"{cold.test_new_items:.1%} of the test rows are of items that training has not"
    if is_gain(items.content):
        return [Remedy.CONTENT], [
            f"New items: use content vectors. They add {gain_text(items.content)} AUC to the "
            f"item's other columns, and the id would add {gain_text(items.known)} more ({rows})."
        ]
    if not is_gain(items.known):
        return [Remedy.NOTHING], [
            f"New items: nothing to win. The other columns tell what ids tell: to know the item "
            f"adds {gain_text(items.known)} AUC ({rows})."
        ]
    has_content = items.content is not None
    return [Remedy.NOTHING], [
        f"New items: nothing will help as the data is. To know the item is worth "
        f"{gain_text(items.known)} AUC, "
        + (
            f"of which the content vectors bring {gain_text(items.content)} ({rows})."
            if has_content
            else f"and there are no content vectors ({rows})."
        ),
        "Data that would help: "
        + ("other content vectors" if has_content else "content vectors of items")
        + " (of text, pictures or sound).",
    ]


def gain_text(gain: Interval | None) -> str:
    """Formats a difference of AUCs with its interval, ``+.0123 [+.0101, +.0145]``."""
    if gain is None:
        return "-"
    values = (gain.mean, gain.low, gain.high)
    mean, low, high = (re.sub(r"^([+-])0\.", r"\1.", f"{value or 0:+.4f}") for value in values)
    return f"{mean} [{low}, {high}]"


def share_text(share: Interval | None) -> str:
    """Formats a share with its interval, ``62 % [55 %, 70 %]``."""
    if share is None:
        return "-"
    return f"{share.mean:.0%} [{share.low or 0:.0%}, {share.high or 0:.0%}]".replace("%", " %")

"""Closing sentences of a diagnosis: remedies for new users and new items, and missing data."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from mail_torchrec.diagnose.cold_rows import ColdRows
from mail_torchrec.diagnose.new_items import NewItemValue
from mail_torchrec.diagnose.new_users import NewUserValue
from mail_torchrec.reporting.intervals import Interval

SMALLEST_GAIN = 0.002
"""AUC below which a gain is reported as none, however narrow its interval is."""
_SMALLEST_SHARE = 0.1
"""Of what histories are worth, below which a remedy is not named."""


class Remedy(StrEnum):
    """Something to try."""

    MAIL = "MAIL"
    PRESET = "MAIL's tuned preset"
    MEAN_FILL = "mean fill"
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
    assert users.recovered is not None and users.attribute_share is not None
    found = [*_fillings(users), *_crosses(users)]
    remedies = [remedy for remedy, _ in found]
    if found:
        named = " and ".join(dict.fromkeys(remedies))
        reasons = "; ".join(reason for _, reason in found)
        first = f"New users: try {named}, for {reasons} ({rows})."
    else:
        remedies = [Remedy.NOTHING]
        first = (
            f"New users: nothing will help as the data is. Histories are worth "
            f"{gain_text(users.histories)} AUC, but those predicted from attributes add "
            f"{gain_text(users.predicted)} to trees that have the attributes ({rows})."
        )
    sentences = [first]
    if Remedy.PRESET in remedies:
        sentences.append(
            "A cheaper try: behaviour dropout, one setting. It teaches the same, but to the one "
            "network that serves old users too, and may cost these; look at both cohorts."
        )
    last = "Data that would help: attributes that tell more of what a user likes"
    if users.explained:
        explained = [max(value, 0) for value in users.explained.values()]
        last += f" (they explain {sum(explained) / len(explained):.0%} of histories' statistics)"
    enough = is_gain(users.predicted) and users.recovered.mean > 0.5
    return list(dict.fromkeys(remedies)), sentences if enough else [*sentences, f"{last}."]


def _fillings(users: NewUserValue) -> Iterator[tuple[Remedy, str]]:
    """Yields what to do about histories that lack, with the reasons.

    Predicted histories tell something of the user: MAIL. Where a model does better that was taught
    to do without histories, than one that is used to them and given a filled-in one, it has to be
    taught: by rows whose histories are taken away. A tower of new users' own learns that at no cost
    to old users. Where the mean of histories repairs as much, nothing has to be taught.
    """
    assert users.recovered is not None
    tells = is_gain(users.predicted) and users.recovered.mean >= _SMALLEST_SHARE
    teaches = is_gain(users.empty_input) and is_gain(users.learnt)
    of_histories = (
        f"histories predicted from attributes recover {share_text(users.recovered)} of what "
        f"histories are worth ({gain_text(users.histories)} AUC)"
    )
    if tells:
        yield (Remedy.PRESET if teaches else Remedy.MAIL), of_histories
    if teaches:
        yield Remedy.PRESET, _to_be_taught(users)
    elif is_gain(users.mean_fill) and not tells:
        yield (
            Remedy.MEAN_FILL,
            f"a model that is used to histories gains {gain_text(users.mean_fill)} AUC where it is "
            "given their mean instead of none, and has nothing to learn beyond that",
        )


def _to_be_taught(users: NewUserValue) -> str:
    reason = (
        f"a model that is used to histories loses {gain_text(users.empty_input)} AUC where they "
        f"lack, and is still {gain_text(users.learnt)} behind with filled-in ones: it has to be "
        "taught to do without, which the preset's tower for new users is"
    )
    if is_gain(users.attributes) or is_gain(users.predicted):
        return reason
    return (
        f"{reason}. That is all there is to win: attributes tell nothing of new users "
        f"({gain_text(users.attributes)})"
    )


def _crosses(users: NewUserValue) -> Iterator[tuple[Remedy, str]]:
    assert users.crosses is not None and users.histories is not None
    if is_gain(users.crosses) and users.crosses.mean >= _SMALLEST_SHARE * users.histories.mean:
        yield (
            Remedy.CROSSES,
            f"attributes crossed with the item are worth {gain_text(users.crosses)} AUC, which "
            "sums of embeddings hardly find",
        )


def _judge_items(items: NewItemValue, cold: ColdRows) -> tuple[list[Remedy], list[str]]:
    if items.known is None or items.columns is None:
        return [], [f"New items: no answer, since {items.why_none}."]
    new_items = (
        "items that training has not" if cold.item_rule is None else f"new items: {cold.item_rule}"
    )
    rows = f"{cold.test_new_items:.1%} of the test rows are of {new_items}"
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
    if share is None or not math.isfinite(share.mean):  # a share of nothing
        return "-"
    return f"{share.mean:.0%} [{share.low or 0:.0%}, {share.high or 0:.0%}]".replace("%", " %")

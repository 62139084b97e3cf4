"""The closing sentences follow from the gains and their intervals."""

import math
from dataclasses import replace

import pytest

from mail_torchrec.diagnose.cold_rows import ColdRows
from mail_torchrec.diagnose.new_items import NewItemValue
from mail_torchrec.diagnose.new_users import NewUserValue
from mail_torchrec.diagnose.verdict import Remedy, gain_text, judge, share_text
from mail_torchrec.reporting.intervals import Interval

COLD = ColdRows(0.02, 0.05, 0.1, 0.03, [], None, True)


def gain(mean: float, half: float = 0.001) -> Interval:
    return Interval(mean, mean - half, mean + half, 1)


NOTHING = gain(0.0005)
USERS = NewUserValue(
    1000,
    100,
    {},
    histories=gain(0.04),
    attributes=gain(0.02),
    predicted=NOTHING,
    crosses=NOTHING,
    empty_input=NOTHING,
    mean_fill=NOTHING,
    virtual=NOTHING,
    learnt=NOTHING,
    attribute_share=gain(0.3, 0.05),
    recovered=gain(0.02, 0.02),
    explained={"seen log length": 0.08},
)
ITEMS = NewItemValue(1000, 50, {}, gain(0.01), None, gain(0.03))


@pytest.mark.parametrize(
    ("changes", "remedies", "sentence"),
    [
        ({}, [Remedy.NOTHING], "nothing will help as the data is"),
        ({"histories": NOTHING}, [Remedy.NOTHING], "a remedy has nothing to give back"),
        (
            {"predicted": gain(0.02), "recovered": gain(0.5)},
            [Remedy.MAIL],
            "recover 50 % [50 %, 50 %]",
        ),
        ({"predicted": gain(0.003), "recovered": gain(0.07)}, [Remedy.NOTHING], "nothing will"),
        ({"predicted": gain(0.02, 0.03), "recovered": gain(0.5)}, [Remedy.NOTHING], "+.0200 [-.01"),
        ({"crosses": gain(0.01)}, [Remedy.CROSSES], "+.0100 [+.0090, +.0110] AUC"),
        ({"crosses": gain(0.0035)}, [Remedy.NOTHING], "nothing will"),  # of .04
        ({"empty_input": gain(0.01)}, [Remedy.NOTHING], "nothing will"),
        (
            {"empty_input": gain(0.01), "learnt": gain(0.008)},
            [Remedy.PRESET],
            "still +.0080 [+.0070, +.0090] behind with filled-in ones",
        ),
        (
            {"predicted": gain(0.02), "recovered": gain(0.5)}
            | {"empty_input": gain(0.01), "learnt": gain(0.008)},
            [Remedy.PRESET],
            "try MAIL's tuned preset, for histories predicted",
        ),
        (
            {"empty_input": gain(0.01), "learnt": gain(0.008), "attributes": NOTHING},
            [Remedy.PRESET],
            "is. That is all there is to win: attributes tell nothing of new users (+.0005",
        ),
        (
            {"empty_input": gain(0.01), "mean_fill": gain(0.01)},
            [Remedy.MEAN_FILL],
            "given their mean instead of none",
        ),
        (
            {"empty_input": gain(0.01), "mean_fill": gain(0.01), "predicted": gain(0.02)}
            | {"recovered": gain(0.5)},
            [Remedy.MAIL],
            "try MAIL, for",
        ),
        (
            {"predicted": gain(0.02), "recovered": gain(0.5), "crosses": gain(0.01)},
            [Remedy.MAIL, Remedy.CROSSES],
            "try MAIL and a tower with attribute crosses",
        ),
    ],
)
def test_remedies_for_new_users(
    changes: dict[str, Interval], remedies: list[Remedy], sentence: str
) -> None:
    verdict = judge(replace(USERS, **changes), ITEMS, COLD)  # type: ignore[arg-type]
    assert verdict.new_users == remedies
    assert sentence in verdict.sentences[0] and "5.0% of the test rows" in verdict.sentences[0]


@pytest.mark.parametrize(
    ("changes", "remedies", "sentence"),
    [
        ({"content": gain(0.02)}, [Remedy.CONTENT], "use content vectors"),
        ({"content": NOTHING}, [Remedy.NOTHING], "other content vectors"),
        ({}, [Remedy.NOTHING], "content vectors of items"),
        ({"known": NOTHING}, [Remedy.NOTHING], "nothing to win"),
    ],
)
def test_remedies_for_new_items(
    changes: dict[str, Interval], remedies: list[Remedy], sentence: str
) -> None:
    verdict = judge(USERS, replace(ITEMS, **changes), COLD)  # type: ignore[arg-type]
    assert verdict.new_items == remedies
    assert sentence in " ".join(verdict.sentences)


def test_numbers_are_written_with_their_signs_and_intervals() -> None:
    assert gain_text(Interval(-0.0123, -0.02, 0.0005, 1)) == "-.0123 [-.0200, +.0005]"
    assert share_text(Interval(0.62, 0.55, 0.7, 1)) == "62 % [55 %, 70 %]"
    assert share_text(Interval(math.nan, math.nan, math.nan, 1)) == share_text(None) == "-"


def test_the_preset_comes_with_the_cheaper_try() -> None:
    taught = replace(USERS, empty_input=gain(0.01), learnt=gain(0.008))
    sentences = judge(taught, ITEMS, COLD).sentences
    assert sentences[1].startswith("A cheaper try: behaviour dropout")
    assert not any("cheaper" in sentence for sentence in judge(USERS, ITEMS, COLD).sentences)


def test_new_items_of_a_rule_are_named_by_it() -> None:
    cold = replace(COLD, item_rule="'days_old' is at most 7")
    sentence = judge(USERS, ITEMS, cold).sentences[-2]
    assert "3.0% of the test rows are of new items: 'days_old' is at most 7" in sentence

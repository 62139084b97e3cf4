"""Users who are held out, and users whose histories are taken away: two draws."""

import json

import numpy as np
import pytest

from mail_torchrec.diagnose.cold_rows import ColdRows
from mail_torchrec.diagnose.new_items import NewItemValue
from mail_torchrec.diagnose.new_users import HELD_OUT, NewUserValue, is_held_out, is_taken_away
from mail_torchrec.diagnose.report import Diagnosis
from mail_torchrec.diagnose.trees import MeasuredScores
from mail_torchrec.diagnose.verdict import Verdict


@pytest.mark.parametrize("share", [0.01, 0.02, 0.1, 0.4, 0.8])
def test_histories_are_taken_away_of_that_share_of_the_users_who_are_fitted_on(
    share: float,
) -> None:
    users = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 200_000)
    is_out, is_empty = is_held_out(users, HELD_OUT), is_taken_away(users, share)
    assert is_out.mean() == pytest.approx(HELD_OUT, abs=0.005)
    for some in (is_out, ~is_out):  # 5 standard errors
        assert is_empty[some].mean() == pytest.approx(share, abs=0.009)


def test_a_share_of_nothing_is_no_number_and_null_in_the_file() -> None:
    labels = np.arange(200) % 3 == 0
    measured = MeasuredScores(labels, np.arange(200) // 4)
    for name in ("base", "oracle", "own"):
        measured.add(name, np.ones(200))
    recovered = measured.share("own", "oracle", "base")
    cold = ColdRows(0.1, 0.1, 0.1, 0.1, [], None, True)
    users = NewUserValue(recovered=recovered, why_none="-")
    found = Diagnosis("", cold, users, NewItemValue(why_none="-"), Verdict([], [], [])).numbers()
    assert found["new_users"]["recovered"] == {"mean": None, "low": None, "high": None}
    json.dumps(found, allow_nan=False)

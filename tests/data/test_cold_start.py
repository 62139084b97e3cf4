"""Users hidden by the simulated cold start: a share, stable, nested, and salted."""

import math
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mail_torchrec.data.cold_start import ColdStartSettings, hidden_users

SAME: dict[str, Any] = {"oracle": True, "salt": "s"}
USERS = pa.array(np.arange(20_000) * 7919 + 10**12)


@settings(max_examples=30)
@given(st.floats(0, 1), st.text(max_size=8))
def test_the_share_is_within_binomial_bounds(share: float, salt: str) -> None:
    """Six standard deviations of 20,000 coin tosses."""
    hidden = hidden_users(USERS, ColdStartSettings(hide_share=share, salt=salt))
    assert abs(hidden.mean() - share) <= 6 * math.sqrt(share * (1 - share) / len(USERS)) + 1e-12


@settings(max_examples=30)
@given(st.floats(0, 1), st.floats(0, 1))
def test_hidden_sets_are_nested(one: float, other: float) -> None:
    """A user hidden at 0.2 is hidden at 0.4."""
    fewer, more = (
        hidden_users(USERS, ColdStartSettings(hide_share=share)) for share in sorted((one, other))
    )
    assert not (fewer & ~more).any()


@given(st.lists(st.integers(0, 127), min_size=1), st.randoms())
def test_a_user_is_hidden_everywhere_or_nowhere(users: list[int], random: Random) -> None:
    """In any file, row order and integer width."""
    cold = ColdStartSettings(hide_share=0.4)
    answer = dict(zip(users, hidden_users(pa.array(users, pa.int64()), cold).tolist(), strict=True))
    shuffled = users * 2
    random.shuffle(shuffled)
    for kind in (pa.int8(), pa.int32(), pa.uint64()):
        for keys in (
            pa.array(shuffled, kind),
            pa.chunked_array([pa.array([user], kind) for user in shuffled]),
        ):
            assert hidden_users(keys, cold).tolist() == [answer[user] for user in shuffled]


def test_another_salt_hides_another_set() -> None:
    """Independent at 0.4: the two agree on 0.4^2 + 0.6^2 of the users."""
    one, other = (
        hidden_users(USERS, ColdStartSettings(hide_share=0.4, salt=salt))
        for salt in ("mail", "other")
    )
    assert (one == other).mean() == pytest.approx(0.52, abs=0.02)


def test_nobody_everybody_and_the_oracle() -> None:
    """The ends of the range are exact; the oracle hides the same users."""
    assert not hidden_users(USERS, ColdStartSettings()).any()
    assert hidden_users(USERS, ColdStartSettings(hide_share=1.0)).all()
    without, with_oracle = (
        hidden_users(USERS, ColdStartSettings(hide_share=0.4, oracle=oracle))
        for oracle in (False, True)
    )
    assert (without == with_oracle).all()


def test_string_keys_and_missing_keys() -> None:
    """Any hashable key will do, and rows without one share one fate."""
    keys = pa.array(["u1", None, "u1", None])
    hidden = hidden_users(keys, ColdStartSettings(hide_share=0.5))
    assert hidden[0] == hidden[2]
    assert hidden[1] == hidden[3]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    """By the settings, by name."""
    with pytest.raises(ValidationError, match="hide_share"):
        ColdStartSettings(hide_share=share)


def test_training_and_test_have_shares_of_their_own() -> None:
    """Each is ``hide_share`` where it is not set; rows of one are never asked for the other's."""
    both = ColdStartSettings(hide_share=0.4, train_share=0.02, oracle=True, salt="s")
    assert both.of_training == ColdStartSettings(hide_share=0.02, oracle=True, salt="s")
    assert both.of_test == both.of_test.of_test == ColdStartSettings(**SAME | {"hide_share": 0.4})
    none_trained = ColdStartSettings(test_share=0.3)
    assert not hidden_users(USERS, none_trained.of_training).any()
    assert hidden_users(USERS, none_trained.of_test).mean() == pytest.approx(0.3, abs=0.02)
    with pytest.raises(AssertionError):
        hidden_users(USERS, both)
    assert "train_share" not in ColdStartSettings(hide_share=0.4).model_dump()
    for share in (-0.1, 1.1):
        with pytest.raises(ValidationError, match="test_share"):
            ColdStartSettings(test_share=share)


def test_float_keys_are_refused() -> None:
    """1.0 and 1 would be two users."""
    with pytest.raises(ValueError, match="received type 'double'"):
        hidden_users(pa.array([1.0]), ColdStartSettings(hide_share=0.4))


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"oracle": True}, r"oracle shows hidden behaviours, and hide_share 0 hides none"),
        ({"keep": 5}, r"keep=5 limits what hidden users show, and hide_share 0 hides none"),
    ],
)
def test_what_needs_hidden_users_is_refused_without_them(
    given_settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ColdStartSettings(**given_settings)
    for share in ("hide_share", "train_share", "test_share"):
        ColdStartSettings(**{share: 0.1} | given_settings)

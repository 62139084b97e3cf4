"""Steps to profile that a run does not have are told before it begins."""

import pytest

from mail_torchrec.profiling.settings import ProfileSettings


@pytest.mark.parametrize(
    ("num_done", "num_steps", "said"),
    [
        (0, 104, None),
        (99, 500, None),
        (0, 99, "behind the last of this run, 99: nothing is profiled"),
        (104, 500, "were done before this run resumed: nothing is profiled"),
        (101, 500, "this run has steps 102 to 104 of them"),
        (0, 102, "this run has steps 100 to 102 of them"),
    ],
)
def test_a_run_says_which_of_the_steps_it_does_not_profile(
    num_done: int, num_steps: int, said: str | None
) -> None:
    warning = ProfileSettings(start=100, steps=5).warning(num_done, num_steps)
    assert warning is said is None or (said and warning and warning.endswith(said))
    assert warning is None or "train.profile: steps 100 to 104" in warning

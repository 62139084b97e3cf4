"""The sentence at the end of a run, for made-up times."""

from dataclasses import replace

import pytest

from mail_torchrec.profiling.bottleneck import (
    PARTS,
    RunFacts,
    TimeShares,
    advice,
    bottleneck_line,
    time_shares,
)

FACTS = RunFacts(
    world_size=1,
    num_workers=0,
    group_by_user=True,
    sharded=True,
    compiled=False,
    precision="float32",
    device="cpu",
    num_threads=1,
    num_cores=4,
)
SPANS = {"lookup": 1.0, "ranking": 2.0, "zero_shot": 1.0, "backward": 8.0, "optimizer": 1.0}


@pytest.mark.parametrize(
    ("spans", "seconds", "first", "said"),
    [
        (SPANS | {"input": 30.0}, 43.0, "input", "data.num_workers=2"),
        (SPANS | {"lookup": 40.0}, 52.0, "lookup", "shorter histories"),
        (SPANS, 14.0, "dense", "OMP_NUM_THREADS=4"),
        (SPANS | {"communication": 30.0}, 43.0, "communication", "train.batch_size"),
        (SPANS, 90.0, "rest", "train.evaluate_every"),
    ],
)
def test_the_largest_part_is_named_with_what_to_try(
    spans: dict[str, float], seconds: float, first: str, said: str
) -> None:
    shares = time_shares(spans, seconds)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(PARTS, key=lambda name: shares[name]) == first
    line = bottleneck_line(TimeShares(10, seconds / 10, shares), FACTS)
    assert "\n" not in line and said in line and f"{shares[first]:.0%} of " in line


def test_the_backward_pass_is_divided_as_the_forward_pass_is() -> None:
    shares = time_shares(SPANS, 13.0)
    expected = {"input": 0, "lookup": 3 / 13, "dense": 10 / 13, "communication": 0, "rest": 0}
    assert shares == pytest.approx(expected)


def test_a_run_without_measured_steps_says_so() -> None:
    assert "too few steps" in bottleneck_line(TimeShares(0), FACTS)
    assert set(time_shares({}, 0.0).values()) == {0.0}


@pytest.mark.parametrize(
    ("part", "change", "said", "unsaid"),
    [
        ("input", {"num_workers": 2}, "data.num_workers=4", "num_workers=2"),
        ("lookup", {"sharded": False}, "sharding.enabled=true", "group_by_user"),
        ("lookup", {"group_by_user": False}, "data.group_by_user=true", "sharding"),
        ("dense", {"device": "cuda"}, "train.precision=tf32", "OMP"),
        ("dense", {"num_threads": 4}, "train.compile=true", "OMP"),
        ("dense", {"compiled": True}, "OMP_NUM_THREADS=4", "train.compile"),
    ],
)
def test_the_advice_leaves_out_what_the_run_does_already(
    part: str, change: dict[str, object], said: str, unsaid: str
) -> None:
    text = advice(part, replace(FACTS, **change))  # type: ignore[arg-type]
    assert said in text and unsaid not in text

"""Sampled negatives: their distribution, and the log of their expected counts."""

import math

import numpy as np
import pyarrow as pa
import pytest

from mail_torchrec.data.ids.hash import HashedIds
from mail_torchrec.data.ids.vocabulary import Vocabulary
from mail_torchrec.data.negatives import NegativeDistribution, NegativeSampler

COUNTS = [10, 50, 5, 1, 30, 3, 1]
RANKS = [2, 0, 3, 5, 1, 4, 6]
NUM_SAMPLES = 200_000


def vocabulary(counts: list[int]) -> Vocabulary:
    return Vocabulary(pa.array(range(len(counts)), pa.int64()), np.array(counts, dtype=np.int64))


def probabilities(how: NegativeDistribution) -> list[float]:
    n = len(COUNTS)
    if how is NegativeDistribution.LOG_UNIFORM:
        return [math.log((k + 2) / (k + 1)) / math.log(n + 1) for k in RANKS]
    return (
        [count / sum(COUNTS) for count in COUNTS]
        if how is NegativeDistribution.UNIGRAM
        else [1 / n] * n
    )


@pytest.mark.parametrize("how", NegativeDistribution)
def test_the_distribution_is_the_one_expected(how: NegativeDistribution) -> None:
    """Chi square of 6 degrees of freedom: above 30 once in 25,000 tries (and the seed is fixed)."""
    sampler = NegativeSampler(how, NUM_SAMPLES, vocabulary(COUNTS), "item")
    rows = sampler.sample(np.random.default_rng(5)).tolist()
    wanted = [NUM_SAMPLES * p for p in probabilities(how)]
    assert sum(wanted) == pytest.approx(NUM_SAMPLES)
    assert set(rows) == set(range(2, 2 + len(COUNTS)))
    assert sum((rows.count(2 + k) - wanted[k]) ** 2 / wanted[k] for k in range(len(COUNTS))) < 30
    found = sampler.log_expected_counts(np.arange(2, 2 + len(COUNTS))).tolist()
    assert found == pytest.approx([math.log(x) for x in wanted], rel=1e-5)


def test_unknown_and_missing_ids_are_corrected_like_the_rarest() -> None:
    sampler = NegativeSampler(NegativeDistribution.UNIGRAM, 10, vocabulary(COUNTS), "item")
    assert sampler.log_expected_counts(np.array([0, 1, 8])).tolist() == pytest.approx(
        [math.log(10 / sum(COUNTS))] * 3
    )


def test_one_value_is_always_drawn() -> None:
    assert set(
        NegativeSampler(NegativeDistribution.LOG_UNIFORM, 50, vocabulary([3]), "item")
        .sample(np.random.default_rng(1))
        .tolist()
    ) == {2}


def test_a_hashed_table_is_drawn_from_uniformly() -> None:
    rows = NegativeSampler(NegativeDistribution.UNIFORM, 1000, HashedIds("item", 7), "item").sample(
        np.random.default_rng(1)
    )
    assert set(rows.tolist()) == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("how", [NegativeDistribution.LOG_UNIFORM, NegativeDistribution.UNIGRAM])
def test_a_hashed_table_has_no_frequencies(how: NegativeDistribution) -> None:
    with pytest.raises(
        ValueError,
        match=(
            f"negatives '{how}' need frequencies, which the ids of table 'item' lack; use 'uniform'"
        ),
    ):
        NegativeSampler(how, 10, HashedIds("item", 7), "item")


@pytest.mark.parametrize("how", NegativeDistribution)
def test_an_empty_vocabulary_has_no_negatives(how: NegativeDistribution) -> None:
    with pytest.raises(ValueError, match="table 'item' should hold values to draw negatives from"):
        NegativeSampler(how, 10, vocabulary([]), "item")

"""Similarity metrics on vectors whose similarity is known."""

import numpy as np
import pytest

from mail_torchrec.drift.two_sample import two_sample_auc
from mail_torchrec.reproduce.similarity import (
    explained_variance,
    mean_cosine,
    rescaled_explained_variance,
    tsne_embedding,
)

RANDOM = np.random.default_rng(0)
FIRST, SECOND = RANDOM.normal(size=(2, 400, 5))


def test_two_sets_of_one_distribution_are_not_told_apart() -> None:
    assert two_sample_auc(FIRST, SECOND) == pytest.approx(0.5, abs=0.06)


def test_ten_vectors_of_each_are_enough() -> None:
    assert two_sample_auc(FIRST[:10], SECOND[:10] + 50) == 1


def test_sets_in_other_places_or_of_another_spread_are_told_apart() -> None:
    assert two_sample_auc(FIRST, SECOND + 5) > 0.99
    assert (
        two_sample_auc(FIRST, SECOND * 0.01) > 0.95
    )  # the same mean: a linear classifier would see nothing
    assert 0.6 < two_sample_auc(FIRST, SECOND + 0.5) < 0.95


def test_explained_variance_of_known_parts() -> None:
    signal, noise = 2 * FIRST, SECOND
    real = signal + noise
    assert (
        explained_variance(real, real) == 1
        and explained_variance(real, np.broadcast_to(real.mean(0), real.shape)) == 0
    )
    assert explained_variance(real, signal) == pytest.approx(4 / 5, abs=0.04)
    assert explained_variance(real, -signal) < -1


def test_shift_and_scale_do_not_change_what_can_be_explained() -> None:
    signal, noise = 2 * FIRST, SECOND
    assert rescaled_explained_variance(signal + noise, 7 - 0 * signal) == 0
    for scale, shift in ((1, 0), (0.01, 3), (100, -2)):
        assert rescaled_explained_variance(signal + noise, scale * signal + shift) == pytest.approx(
            4 / 5, abs=0.04
        )
    assert rescaled_explained_variance(signal, -signal) == 0  # no factor above 0 helps


def test_cosines_are_means_over_users_and_0_without_a_direction() -> None:
    real = np.array([[1.0, 0.0], [1.0, 1.0], [3.0, 0.0]])
    assert mean_cosine(real, np.array([[2.0, 0.0], [1.0, -1.0], [0.0, 0.0]])) == pytest.approx(
        1 / 3
    )


def test_sets_that_are_apart_are_apart_on_the_plane_whatever_their_scale() -> None:
    for scale in (1e-6, 1.0, 1e6):
        first, second = tsne_embedding(scale * FIRST[:40], scale * (SECOND[:30] + 20))
        assert first.shape == (40, 2) and second.shape == (30, 2)
        between = np.linalg.norm(first.mean(0) - second.mean(0))
        assert between > max(
            np.linalg.norm(part - part.mean(0), axis=1).mean() for part in (first, second)
        )


def test_the_plane_is_the_same_each_time_and_bears_equal_points() -> None:
    assert np.array_equal(
        tsne_embedding(FIRST[:20], SECOND[:20])[0], tsne_embedding(FIRST[:20], SECOND[:20])[0]
    )
    assert np.isfinite(tsne_embedding(np.ones((10, 3)), np.ones((10, 3)))[0]).all()

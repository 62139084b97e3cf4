"""The reservoir is a uniform sample of what was offered, of bounded size."""

import threading

import numpy as np
import pytest

from mail_torchrec.serve.drift.reservoir import Reservoir


def offered(reservoir: Reservoir, num_users: int, at_once: int = 1) -> None:
    """Offers users whose vectors are their numbers."""
    for start in range(0, num_users, at_once):
        if (sampled := reservoir.offer(min(at_once, num_users - start))) is not None:
            numbers = np.array(sampled.users_S, np.float32) + start
            reservoir.put(sampled, numbers[:, None].repeat(2, 1))


@pytest.mark.parametrize("at_once", [1, 7])
def test_every_user_is_as_likely_as_any_other(at_once: int) -> None:
    counts = np.zeros(50)
    for _ in range(2000):
        reservoir = Reservoir(10, 2)
        offered(reservoir, 50, at_once)
        vectors = reservoir.take(10)
        assert vectors is not None and vectors.shape == (10, 2)
        assert len(np.unique(vectors[:, 0])) == 10
        counts[vectors[:, 0].astype(int)] += 1
    assert np.abs(counts - 400).max() < 4 * np.sqrt(2000 * 0.2 * 0.8)


def test_fewer_users_than_places_are_all_kept_and_a_window_ends_once() -> None:
    reservoir = Reservoir(10, 2)
    offered(reservoir, 6)
    assert reservoir.take(7) is None  # it goes on
    vectors = reservoir.take(6)
    assert vectors is not None and sorted(vectors[:, 0]) == [0, 1, 2, 3, 4, 5]
    assert reservoir.take(1) is None


def test_what_comes_after_its_window_or_is_not_finite_is_dropped() -> None:
    reservoir = Reservoir(10, 2)
    offered(reservoir, 3)
    late = reservoir.offer(1)
    assert late is not None and reservoir.take(1) is not None
    reservoir.put(late, np.zeros((1, 2), np.float32))
    offered(reservoir, 2)
    infinite = reservoir.offer(1)
    assert infinite is not None
    reservoir.put(infinite, np.array([[np.inf, 0]], np.float32))
    vectors = reservoir.take(1)
    assert vectors is not None and sorted(vectors[:, 0]) == [0, 1]


def test_many_threads_offer_at_once() -> None:
    reservoir = Reservoir(1000, 2)
    threads = [threading.Thread(target=offered, args=(reservoir, 200)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    vectors = reservoir.take(1)
    assert vectors is not None and len(vectors) == 800
    assert np.array_equal(np.sort(vectors[:, 0]), np.repeat(np.arange(200), 4))

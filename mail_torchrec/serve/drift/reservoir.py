"""Reservoir: a uniform sample of bounded size of the users that a version serves.

Shape letters: ``U`` users of a request, ``S`` sampled ones of them, ``D`` elements of a vector.
"""

import random
import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Sampled(NamedTuple):
    """Users of one request that are to be sampled, and their places in the reservoir."""

    users_S: list[int]
    """Positions among the users that were offered."""
    places_S: list[int]
    window: int
    """Number of the window that they belong to."""


class Reservoir:
    """Uniform sample of what is offered between two calls of :meth:`take` (Vitter's algorithm R).

    Who is sampled is decided before the vectors are computed, so that only theirs are asked for.

    Args:
        capacity: most vectors.
        dim: elements of a vector.
    """

    def __init__(self, capacity: int, dim: int) -> None:
        self.capacity = capacity
        self._vectors = np.full((capacity, dim), np.nan, np.float32)
        self._lock = threading.Lock()
        self._random = random.Random()
        self._num_offered = self._window = 0

    def offer(self, num_users: int) -> Sampled | None:
        """Counts users and decides which ones to sample; None for nobody.

        Args:
            num_users: users of a request.
        """
        users: list[int] = []
        places: list[int] = []
        with self._lock:
            for user in range(num_users):
                place = self._num_offered
                self._num_offered += 1
                if place >= self.capacity:  # then with probability capacity / number offered
                    place = int(self._random.random() * self._num_offered)
                if place < self.capacity:
                    users.append(user)
                    places.append(place)
            return Sampled(users, places, self._window) if users else None

    def put(self, sampled: Sampled, vectors_SD: NDArray[np.float32]) -> None:
        """Keeps the vectors of sampled users, unless their window has ended.

        Args:
            sampled: what :meth:`offer` returned.
            vectors_SD: their vectors.
        """
        with self._lock:
            if sampled.window == self._window:
                self._vectors[sampled.places_S] = vectors_SD

    def take(self, least: int) -> NDArray[np.float32] | None:
        """Ends the window and returns its vectors [users, D]; None where there are too few yet.

        Vectors with elements that are not finite are left out.

        Args:
            least: fewest vectors; with fewer the window goes on.
        """
        with self._lock:
            kept = np.isfinite(self._vectors).all(1)
            if np.count_nonzero(kept) < least:
                return None
            vectors = self._vectors[kept]
            self._vectors.fill(np.nan)
            self._num_offered = 0
            self._window += 1
            return vectors

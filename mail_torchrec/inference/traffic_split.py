"""Which users a second version serves: known from the user's id alone, so a log can be held against it."""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mail_torchrec.data.ids.hashing import hash64, hash64_of


@dataclass(frozen=True)
class Split:
    """Which users a second version serves.

    A user belongs to it where ``hash64(str(user), salt)`` of ``data/ids/hashing.py`` is below
    ``share`` times 2^64.
    """

    version: str
    """Folder name or version."""
    share: float
    salt: str = "split"

    @classmethod
    def parse(cls, text: str, salt: str) -> "Split":
        """``VERSION=SHARE``.

        Raises:
            ValueError: it is not.
        """
        version, _, share = text.rpartition("=")
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not version or not 0 <= value <= 1:
            raise ValueError(
                f"--split should be VERSION=SHARE with a share from 0 to 1, received '{text}'"
            )
        return cls(version, value, salt)

    def takes(self, user: str) -> bool:
        """Whether it serves this user."""
        return hash64_of(user, self.salt) < self._limit

    def takes_all(self, users: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
        """Whether it serves each user of a column of integers or strings."""
        if self._limit == 2**64:  # one more than 64 bits hold
            return np.ones(len(users), np.bool_)
        below: NDArray[np.bool_] = hash64(users.cast(pa.large_string()), self.salt) < np.uint64(
            self._limit
        )
        return below

    @property
    def _limit(self) -> int:
        return int(self.share * 2**64)

"""Traffic split between two served versions, by a hash of the user's id.

The hash is all that it depends on, so a log of served requests can be checked against it.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mail_torchrec.data.ids.hashing import hash64, hash64_of


@dataclass(frozen=True)
class TrafficSplit:
    """Share of users that a candidate version serves.

    A user is assigned to it where ``hash64(str(user), salt)`` of ``data/ids/hashing.py`` is below
    ``share`` times 2^64.
    """

    version: str
    """Folder name or version of the candidate."""
    share: float
    """Share of users, 0 to 1."""
    salt: str = "split"
    """Another salt assigns another set of users."""

    @classmethod
    def parse(cls, text: str, salt: str) -> "TrafficSplit":
        """Parses ``VERSION=SHARE``.

        Raises:
            ValueError: another form, or a share outside 0 to 1.
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

    def is_assigned(self, user: str) -> bool:
        """Tells if a user is assigned to the candidate version."""
        return hash64_of(user, self.salt) < self._threshold

    def assigned_mask(self, users: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
        """Tells for each user of a column [R] of integers or strings if it is assigned, [R]."""
        if self._threshold == 2**64:  # one more than 64 bits hold
            return np.ones(len(users), np.bool_)
        hashes_R = hash64(users.cast(pa.large_string()), self.salt)
        assigned_R: NDArray[np.bool_] = hashes_R < np.uint64(self._threshold)
        return assigned_R

    @property
    def _threshold(self) -> int:
        return int(self.share * 2**64)

"""Simulated cold start: hides the behaviours of a share of the users, in training and in test.

Shapes: ``R`` rows.
"""

from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.settings import Settings


class ColdStartSettings(Settings):
    """Chooses the users whose behaviours are hidden, and how many of them."""

    hide_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of users whose behaviours are hidden, in training and test alike. 0: none, so that new
    users are those of the data."""
    salt: str = "mail"
    """Salt of the hash that chooses the hidden users; another salt hides other users."""
    oracle: bool = False
    """Show the hidden behaviours to the model, yet report these users as new: the upper bound of
    every cold-start method."""
    keep: int = Field(default=0, ge=0)
    """Number of newest behaviours of each sequence that hidden users keep: users who warm up, still
    reported as new."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hide_share:
            return self
        if self.oracle:
            raise ValueError(
                "oracle shows hidden behaviours, and hide_share 0 hides none, so it would equal "
                "the same run without it; set hide_share above 0, or oracle false"
            )
        if self.keep:
            raise ValueError(
                f"keep={self.keep} limits what hidden users show, and hide_share 0 hides none; set "
                "hide_share above 0, or keep 0"
            )
        return self


def hidden_users(
    keys: pa.Array | pa.ChunkedArray, settings: ColdStartSettings
) -> NDArray[np.bool_]:
    """Selects the rows of users whose behaviours are hidden.

    A user is hidden where the salted 64-bit hash of the key is below ``hide_share * 2^64``. The
    answer depends on nothing else, so it is the same in every file, on every rank, in training and
    in test, and a user hidden at a small share is hidden at every larger one. Rows without a key
    (null) have one hash: they count as one user.

    Args:
        keys: group keys [R]: integers, strings, ... (see
            :func:`mail_torchrec.data.ids.hashing.hash64`).
        settings: the share and the salt; ``oracle`` and ``keep`` do not change who is hidden.

    Returns:
        True where the user is hidden, [R].

    Raises:
        ValueError: the keys are of a type that cannot be hashed, such as floats.
    """
    threshold = int(settings.hide_share * 2**64)
    hashes_R = hash64(keys, settings.salt)
    if threshold >= 2**64:
        return np.ones(len(hashes_R), np.bool_)
    return hashes_R < np.uint64(threshold)

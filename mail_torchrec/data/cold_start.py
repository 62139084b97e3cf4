"""The simulated cold start: which users' behaviours are hidden, in training and in test alike."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.settings import Settings

ALL = np.iinfo(np.int64).max
"""As many behaviours as there are."""


class ColdStartSettings(Settings):
    """Who is made a new user."""

    hide_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """The share of users whose behaviours are hidden. 0: nobody's, new users are those of the
    data."""
    salt: str = "mail"
    """Another salt hides another set of users."""
    oracle: bool = False
    """Give the hidden behaviours back, yet count these users as new in the metrics: the bound of
    every cold-start method."""
    keep: int = Field(default=0, ge=0)
    """Leave these users the newest so many behaviours of each sequence: users who are warming up,
    in the metrics still new."""


def hidden_users(
    keys: pa.Array | pa.ChunkedArray, settings: ColdStartSettings
) -> NDArray[np.bool_]:
    """Tell which rows belong to users whose behaviours are hidden.

    A user is hidden where the salted 64-bit hash of the key is below ``hide_share * 2^64``. The
    answer depends on nothing else, so it is the same in every file, on every rank, in training and
    in test, and whoever is hidden at a small share is hidden at every larger one. Rows without a
    key (null) hash alike: they count as one user.

    Args:
        keys: the user of each row: integers, strings, ... (see
            :func:`mail_torchrec.data.ids.hashing.hash64`).
        settings: the share and the salt; ``oracle`` and ``keep`` do not change who is hidden.

    Returns:
        True where the user is hidden, ``[len(keys)]``.

    Raises:
        ValueError: the keys are of a type that cannot be hashed, as floats are.
    """
    threshold = int(settings.hide_share * 2**64)
    hashes = hash64(keys, settings.salt)
    if threshold >= 2**64:
        return np.ones(len(hashes), np.bool_)
    return hashes < np.uint64(threshold)


def most_behaviours(hidden_R: NDArray[np.bool_], settings: ColdStartSettings) -> NDArray[np.int64]:
    """The most behaviours of a sequence that each row shows, the newest ones: ``keep`` where they are hidden, else ``ALL``."""
    return np.where(hidden_R & (not settings.oracle), settings.keep, ALL)

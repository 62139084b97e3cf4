"""Simulated cold start: hides the behaviours of a share of the users, in training and in test.

Shapes: ``R`` rows.
"""

from enum import StrEnum
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.items.settings import HiddenItemSettings
from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.settings import Settings


class HiddenBy(StrEnum):
    """Unit that is hidden: a user in all rows, or in the rows of some days."""

    USER = "user"
    USER_DAY = "user_day"


class ColdStartSettings(Settings):
    """Chooses the users whose behaviours are hidden, and how many of them."""

    hide_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of users whose behaviours are hidden, in training and test alike. 0: none, so that new
    users are those of the data."""
    train_share: float | None = Field(
        default=None, ge=0.0, le=1.0, exclude_if=lambda share: share is None
    )
    """The same of the rows that are trained on, 0.02 where new users are rare in the log; null:
    `hide_share`."""
    test_share: float | None = Field(
        default=None, ge=0.0, le=1.0, exclude_if=lambda share: share is None
    )
    """The same of the rows that are evaluated (test, validation, `evaluate`, `progressive_rows`);
    null: `hide_share`. A user hidden at a share is hidden at every larger one."""
    by: HiddenBy = Field(default=HiddenBy.USER, exclude_if=lambda by: by is HiddenBy.USER)
    """`user`: chosen users are hidden in all their rows. `user_day`: each user is hidden on a share
    of the days, by the column of group `day`."""
    salt: str = "mail"
    """Salt of the hash that chooses the hidden users; another salt hides other users."""
    oracle: bool = False
    """Show the hidden behaviours to the model, yet report these users as new: the upper bound of
    every cold-start method."""
    keep: int = Field(default=0, ge=0)
    """Number of newest behaviours of each sequence that hidden users keep: users who warm up, still
    reported as new."""
    items: HiddenItemSettings | None = Field(default=None, exclude_if=lambda items: items is None)
    """Items whose ids are withheld: simulated new items; null: none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hides_users:
            return self
        if self.oracle:
            raise ValueError(
                "oracle shows hidden behaviours, and hide_share 0 hides none, so it would equal "
                "the same run without it; set hide_share (or test_share) above 0, or oracle false"
            )
        if self.keep:
            raise ValueError(
                f"keep={self.keep} limits what hidden users show, and hide_share 0 hides none; set "
                "hide_share (or test_share) above 0, or keep 0"
            )
        return self

    @property
    def hides_users(self) -> bool:
        """True where behaviours are hidden, in training or in test."""
        return bool(self.of_training.hide_share or self.of_test.hide_share)

    @property
    def of_training(self) -> Self:
        """The settings of rows that are trained on, whose share is :attr:`hide_share`."""
        items = None if self.items is None else self.items.with_share(self.items.train_share)
        return self._with_share(self.train_share, items)

    @property
    def of_test(self) -> Self:
        """The settings of rows that are evaluated, whose share is :attr:`hide_share`."""
        items = None if self.items is None else self.items.with_share(self.items.test_share)
        return self._with_share(self.test_share, items)

    def check_days(self, day: str | None) -> None:
        """Checks that there is a column of days where users are hidden by days.

        Args:
            day: the schema's column of group ``day``.

        Raises:
            ValueError: there is none.
        """
        if self.by is HiddenBy.USER_DAY and day is None:
            raise ValueError(
                "data.cold_start.by=user_day needs the day of each row; name its column, as in "
                "schema.columns.day={group: day, column: date}, or hide by: user"
            )

    def shares_given(self) -> str:
        """Formats the shares as overrides, as in ``data.cold_start.hide_share=0.4``."""
        names = ["hide_share", *self._shares_of_parts]
        return ", ".join(f"data.cold_start.{name}={getattr(self, name):g}" for name in names)

    def deciding_shares(self) -> list[str]:
        """Lists the shares that hide users: ``hide_share``, where not both parts have their own."""
        given = self._shares_of_parts
        return given if len(given) == 2 else ["hide_share", *given]

    @property
    def _shares_of_parts(self) -> list[str]:
        names = "train_share", "test_share"
        return [name for name in names if getattr(self, name) is not None]

    def _with_share(self, share: float | None, items: HiddenItemSettings | None) -> Self:
        own = {"hide_share": self.hide_share if share is None else share, "items": items}
        return self.model_copy(update=own | {"train_share": None, "test_share": None})


def hidden_users(
    keys: pa.Array | pa.ChunkedArray, settings: ColdStartSettings, days_R: Ints | None = None
) -> NDArray[np.bool_]:
    """Selects the rows of users whose behaviours are hidden.

    A user is hidden where the salted 64-bit hash of the key is below ``hide_share * 2^64``. The
    answer depends on nothing else, so it is the same in every file, on every rank, in training and
    in test, and a user hidden at a small share is hidden at every larger one. Rows without a key
    (null) have one hash: they count as one user.

    Args:
        keys: group keys [R]: integers, strings, ... (see
            :func:`mail_torchrec.data.ids.hashing.hash64`).
        settings: the share and the salt, of training or of test; ``oracle`` and ``keep`` do not
            change who is hidden.
        days_R: day of each row [R], where users are hidden by days; the hash is then of user and
            day.

    Returns:
        True where the user is hidden, [R].

    Raises:
        ValueError: the keys are of a type that cannot be hashed, such as floats.
    """
    assert settings.train_share is None is settings.test_share, "ask of_training or of_test"
    threshold = int(settings.hide_share * 2**64)
    hashes_R = hash64(keys, settings.salt)
    if settings.by is HiddenBy.USER_DAY:
        assert days_R is not None, "check_days sees to it"
        days_R = hash64(pa.array(days_R), settings.salt).view(np.int64)
        # Hashed once more, or users whose hashes begin alike would be hidden on the same days.
        hashes_R = hash64(pa.array(hashes_R.view(np.int64) ^ days_R), "user_day")
    if threshold >= 2**64:
        return np.ones(len(hashes_R), np.bool_)
    return hashes_R < np.uint64(threshold)

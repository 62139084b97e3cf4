"""Settings of a synthetic click log: sizes, noise, seed and files."""

from datetime import date

from pydantic import Field, model_validator

from mail_torchrec.settings import Settings


class GroundTruthSettings(Settings):
    """Settings that every synthetic click log has: sizes, noise, seed and files."""

    seed: int = Field(default=0, ge=0)
    """Another seed is another world; the same seed gives the same bits."""
    users: int = Field(default=15_000, ge=1)
    """Number of users; all of them have training rows."""
    items: int = Field(default=400, ge=2)
    """Number of items."""
    categories: int = Field(default=10, ge=1)
    """Number of item clusters; an item's vector is its category's plus a part of its own."""
    interest_dim: int = Field(default=6, ge=1)
    """Dimension of interests and of item vectors; as many pairs of attributes decide them."""
    personal_share: float = Field(default=0.15, ge=0.0, le=1.0)
    """Share of the variance of interests that the attributes do not decide."""
    own_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the variance of item vectors that the category does not decide."""
    popularity_exponent: float = Field(default=0.6, ge=0.0)
    """Exponent of Zipf's law: the k-th item is shown in proportion to ``k ** -exponent``."""
    max_history: int = Field(default=50, ge=1)
    """Longest history; lengths are uniform from ``min_history`` to ``max_history``."""
    min_history: int = Field(default=20, ge=0)
    """Shortest history."""
    history_sharpness: float = Field(default=3.0, ge=0.0)
    """Factor of the affinity in the softmax of histories; 0 makes histories ignore interests."""
    click_bias: float = -0.45
    """Logit of a click at affinity 0 and neutral context."""
    click_scale: float = Field(default=1.25, ge=0.0)
    """Factor of the affinity (mean 0, variance 1) in the logit of a click."""
    context_scale: float = Field(default=0.3, ge=0.0)
    """Factor of the effect of hour and device (mean 0, variance 1) in the logit of a click."""
    files: int = Field(default=4, ge=1)
    """Parquet files of the training rows; the test rows have half as many."""
    row_group_rows: int = Field(default=4096, ge=1)
    """Rows a Parquet row group."""
    chunk_values: int = Field(default=2_000_000, ge=1)
    """User-item pairs that are sampled at a time, which bounds the memory."""


class WorldSettings(GroundTruthSettings):
    """Settings of a synthetic click log of training and test rows.

    The defaults give about 60,000 training and 20,000 test rows.
    """

    train_rows_per_user: float = Field(default=4.0, ge=1.0)
    """Mean training impressions a user: one plus a Poisson number."""
    test_users: float = Field(default=1 / 3, gt=0.0, le=1.0)
    """Share of users who come back on the test day."""
    test_rows_per_user: float = Field(default=4.0, ge=1.0)
    """Mean test impressions of a user who comes back."""
    train_days: int = Field(default=7, ge=1)
    """Days of training rows; the test day follows them."""
    hide_share: float = Field(default=0.4, ge=0.0, le=1.0)
    """Share of users hidden by the simulated cold start, for ``world.json``'s best AUC alone."""


class DailyWorldSettings(GroundTruthSettings):
    """Settings of a synthetic click log of several days.

    The defaults give about 6,000 rows a day.
    """

    days: int = Field(default=8, ge=1)
    """Number of days, each a folder; `--days` gives it."""
    start: date = date(2024, 5, 1)
    """The first day."""
    users: int = Field(default=4_000, ge=1)
    """Number of users at any time; a part of them comes on a day."""
    items: int = Field(default=400, ge=2)
    """Number of items in the catalogue at any time."""
    files: int = Field(default=1, ge=1)
    """Parquet files of a day."""
    new_users: float = Field(default=0.08, ge=0.0, le=1.0)
    """Share of the users who leave before each day; as many new ones, without history, come."""
    new_items: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of the items that leave the catalogue before each day; as many new ones are shown in
    their places."""
    drift: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of the variance of the categories' vectors, and of the users' personal interests, that
    is new on each day; 0 keeps all tastes."""
    active_users: float = Field(default=0.4, gt=0.0, le=1.0)
    """Share of the users who come on a day; new users always come on their first one."""
    rows_per_user: float = Field(default=3.5, ge=1.0)
    """Mean impressions on a day of a user who comes: one plus a Poisson number."""
    events_per_user: float = Field(default=8.0, ge=0.0)
    """Mean events on a day of a user who comes: a Poisson number. They follow in the history from
    the next day on."""

    @model_validator(mode="after")
    def _check_lengths(self) -> "DailyWorldSettings":
        if self.min_history > self.max_history:
            raise ValueError(
                f"min_history should be at most max_history, received {self.min_history} and "
                f"{self.max_history}"
            )
        return self

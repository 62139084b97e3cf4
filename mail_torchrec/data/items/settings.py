"""Settings of new items: the rule for them, and the items whose ids are withheld."""

from typing import Self

from pydantic import Field, model_validator

from mail_torchrec.settings import Settings


def _is_none(value: object) -> bool:
    return value is None


class NewItemSettings(Settings):
    """Rule for new items: give `max_count`, or `age` and `max_age`."""

    max_count: int | None = Field(default=None, ge=0, exclude_if=_is_none)
    """An item is new where the training data holds its id at most so many times, as a candidate or
    in histories; 0: first seen after the training. Needs ids that are counted (`vocabulary` or
    `managed`)."""
    age: str | None = Field(default=None, exclude_if=_is_none)
    """Numeric item column with the age of the item, such as one with `age_of` the time at which it
    was first seen."""
    max_age: float | None = Field(default=None, exclude_if=_is_none)
    """An item is new up to this age, in the unit of the column `age`; one of unknown age is not."""
    item: str | None = Field(default=None, exclude_if=_is_none)
    """Column of the candidate item; by default that of `data.cold_start.items`, or the target of
    the first behaviour column."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.age is None) != (self.max_age is None):
            raise ValueError("age names a column, and max_age a bound of it; give both or neither")
        if self.age is not None and self.max_count is not None:
            raise ValueError("max_count and age are two rules for new items; give one")
        return self

    @property
    def has_rule(self) -> bool:
        """True where the section says which items are new, not their column alone."""
        return self.max_count is not None or self.age is not None


class HiddenItemSettings(Settings):
    """Share of the items whose ids are withheld: simulated new items."""

    train_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the items whose ids are withheld from the rows that are trained on, in histories
    too: they are unknown ids there."""
    test_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """The same of the rows that are evaluated. An item hidden at a share is hidden at every larger
    one; items that only test hides were trained, which their oracle shows."""
    salt: str = "item"
    """Salt of the hash that chooses the hidden items."""
    oracle: bool = False
    """Show the withheld ids to the model, yet report these items as new: the upper bound of what
    their other columns can make up for."""
    item: str | None = Field(default=None, exclude_if=_is_none)
    """Column of the candidate item; by default the target of the first behaviour column."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.train_share and not self.test_share:
            raise ValueError(
                "train_share and test_share are both 0, so no item is hidden; set test_share above "
                "0, or drop the section (null)"
            )
        return self

    def with_share(self, share: float) -> Self:
        """Returns the settings of rows of one kind, trained on or evaluated, by their share."""
        return self.model_copy(update={"train_share": share, "test_share": share})

    @property
    def share(self) -> float:
        """Share of the items hidden in rows of one kind, see :meth:`with_share`."""
        assert self.train_share == self.test_share, "ask of_training or of_test"
        return self.test_share

    @property
    def withholds(self) -> bool:
        """True where ids are withheld from rows of one kind, which the oracle does not."""
        return bool(self.share) and not self.oracle

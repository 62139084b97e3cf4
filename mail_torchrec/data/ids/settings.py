"""Settings of an embedding table that id policies read."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mail_torchrec.settings import Settings

_MAX_BUCKETS = 65_536
_OF_MANAGED = ("admit", "evict", "ttl_days", "half_life_days", "fallback_rows")


def _number_or_edges(value: object) -> object:
    if value is None or isinstance(value, list | tuple):
        return value
    if not isinstance(value, int) or value is True or not 2 <= value <= _MAX_BUCKETS:
        raise ValueError(
            f"should be a number of buckets from 2 to {_MAX_BUCKETS}, or a list of the edges "
            f"between them, received {value!r}"
        )
    return value


class IdSettings(Settings):
    """Chooses and configures the id policy of one embedding table."""

    ids: str = "vocabulary"
    """Id policy, which turns raw ids into table rows: `vocabulary` (one row for each value of the
    training data, saved with the model), `managed` (a fixed number of rows that ids get and lose as
    runs continue; needs `rows`), `hash` (a fixed number of rows that all values share; needs
    `rows`) or `buckets` (numbers, one row for each interval; needs `buckets`)."""
    rows: int | None = Field(default=None, ge=3)
    """Number of rows for `ids: hash` and `ids: managed`. For `ids: vocabulary` the maximum number
    of rows, given to the most frequent values (no maximum by default). All include the two rows for
    unknown and for null ids."""
    min_count: int = Field(default=1, ge=1)
    """Minimum count for `ids: vocabulary`: values that occur less often in the training data share
    row 0 with the values that never occur."""
    buckets: Annotated[
        Annotated[int, Field(ge=2, le=_MAX_BUCKETS, strict=True)] | list[float] | None,
        BeforeValidator(_number_or_edges),
    ] = Field(default=None, exclude_if=lambda buckets: buckets is None)
    """For `ids: buckets`: number of buckets, at quantiles of the training data so that each holds
    equally many numbers; or the edges between them, `[18, 65]` for below 18, from 18 to below 65,
    and from 65 on."""
    admit: int = Field(default=1, ge=1, exclude_if=lambda admit: admit == 1)
    """For `ids: managed`: an id gets a row of its own once it occurs so often in the training data
    of one run; until then it shares the `fallback_rows`."""
    evict: Literal["lfu", "lru", "ttl"] = Field(
        default="lfu", exclude_if=lambda evict: evict == "lfu"
    )
    """For `ids: managed`, who loses its row where none is free: the id of the lowest count (`lfu`),
    the one not seen for longest (`lru`), or none but those of `ttl_days` (`ttl`). Ids of the new
    training data never do."""
    ttl_days: int | None = Field(default=None, ge=1, exclude_if=lambda days: days is None)
    """For `ids: managed`: an id that was not seen for more than so many days loses its row."""
    half_life_days: float | None = Field(default=30.0, gt=0, exclude_if=lambda days: days == 30.0)
    """For `ids: managed`: counts of former runs halve in so many days; null: never."""
    fallback_rows: int = Field(default=64, ge=1, exclude_if=lambda rows: rows == 64)
    """For `ids: managed`: rows that ids without a row of their own share, by a hash."""

    @model_validator(mode="after")
    def _check_managed(self) -> Self:
        given = [name for name in _OF_MANAGED if name in self.model_fields_set]
        if given and self.ids != "managed":
            raise ValueError(
                f"{', '.join(given)} should stand with ids 'managed', received ids '{self.ids}'; "
                "drop, or change ids"
            )
        return self

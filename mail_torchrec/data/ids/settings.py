"""Settings of an embedding table that id policies read."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from mail_torchrec.settings import Settings

_MAX_BUCKETS = 65_536


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
    training data, saved with the model), `hash` (a fixed number of rows that all values share;
    needs `rows`) or `buckets` (numbers, one row for each interval; needs `buckets`)."""
    rows: int | None = Field(default=None, ge=3)
    """Number of rows for `ids: hash`. For `ids: vocabulary` the maximum number of rows, given to
    the most frequent values (no maximum by default). Both include the two rows for unknown and for
    null ids."""
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

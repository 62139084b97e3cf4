"""Times as microseconds since 1970 in UTC, whatever unit and zone they are stored in.

Shapes: ``N`` values.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.parquet.arrow import Ints

TIME = pa.timestamp("us")
"""Plain type of times: without a zone, which means UTC here."""
MICROSECONDS = {
    "microsecond": 1,
    "millisecond": 1_000,
    "second": 1_000_000,
    "minute": 60_000_000,
    "hour": 3_600_000_000,
    "day": 86_400_000_000,
}
"""Microseconds of each unit."""
_FIRST = -62_135_596_800 * MICROSECONDS["second"]
_LAST = 253_402_300_800 * MICROSECONDS["second"] - 1


def plain_times(values: pa.Array) -> pa.Array:
    """Converts timestamps and dates to :data:`TIME`; parts of a microsecond are dropped.

    Raises:
        ValueError: a time outside of the years 1 to 9999.
    """
    kind = values.type
    zone = kind.tz if pa.types.is_timestamp(kind) else None
    try:
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            values = pc.floor_temporal(values.cast(pa.timestamp("ns")), 1, "microsecond")
            return values.cast(TIME)  # the whole range of nanoseconds is in these years
        times = values.cast(pa.timestamp("us", zone)).cast(TIME)
    except pa.ArrowException as error:
        raise ValueError(f"should hold times of the years 1 to 9999: {error}") from error
    times_N = times.cast(pa.int64()).drop_null().to_numpy()
    is_wrong_N = (times_N < _FIRST) | (times_N > _LAST)
    if is_wrong_N.any():
        raise ValueError(
            "should hold times of the years 1 to 9999, received "
            f"{np.datetime64(int(times_N[np.argmax(is_wrong_N)]), 'us')}"
        )
    return times


def integer_bounds(unit: str) -> tuple[int, int]:
    """Returns the least and the greatest integer in a unit that is a time."""
    scale = MICROSECONDS[unit]
    return -(-_FIRST // scale), _LAST // scale


def times_of_integers(integers_N: Ints, unit: str) -> tuple[Ints, int | None]:
    """Converts integers in a unit to microseconds since 1970, [N].

    Returns:
        The microseconds, and the place of the first one outside of the years 1 to 9999, if any.
    """
    low, high = integer_bounds(unit)
    is_wrong_N = (integers_N < low) | (integers_N > high)
    wrong = int(np.argmax(is_wrong_N)) if is_wrong_N.any() else None
    return np.where(is_wrong_N, 0, integers_N) * MICROSECONDS[unit], wrong

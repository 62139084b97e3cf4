"""Times of files in microseconds since 1970, UTC, and what is wrong with one that is not plausible.

A number in the wrong unit is never plausible: seconds taken for milliseconds lie in January 1970,
milliseconds taken for seconds beyond the year 50000.
"""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.prepare.events.settings import TimeUnit

_TICKS_PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_US = 10**6


def check_time_type(kind: pa.DataType, unit: TimeUnit | None, where: str, is_log: bool) -> None:
    """Checks that a column can be a time.

    Args:
        kind: type of the column.
        unit: unit of times that are numbers.
        where: file and column, for messages.
        is_log: whether the time is an instant of a log, which a day is not.

    Raises:
        ValueError: it cannot.
    """
    if pa.types.is_timestamp(kind):
        return
    if pa.types.is_date(kind):
        if is_log:
            raise ValueError(
                f"{where} should be an instant, received days ({kind}): an event of the evening "
                "would stand before an impression of the morning; write timestamps"
            )
        return
    if kind == pa.bool_() or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(
            f"{where} should be a timestamp, or a number with its unit, received {kind}; write "
            "timestamps (of a CSV file: types: {COLUMN: timestamp})"
        )
    if unit is None:
        raise ValueError(
            f"{where} is a number ({kind}), and should have a unit; add unit: s, ms, us or ns "
            "(since 1970, UTC)"
        )


def to_microseconds(
    values: pa.Array, unit: TimeUnit | None, lower: int, upper: int, is_catalogue: bool
) -> pa.Array:
    """Converts times to microseconds since 1970.

    Args:
        values: timestamps, days or numbers, [rows].
        unit: unit of numbers.
        lower: first plausible time in microseconds.
        upper: end of plausible times in microseconds.
        is_catalogue: for validity any timestamp is plausible, and the number 0: 1 January 1900 and
            31 December 9999 are no mistakes.

    Returns:
        Microseconds (int64), [rows]; null where the value is null or not plausible.
    """
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        tz = kind.tz if pa.types.is_timestamp(kind) else None
        found = values.cast(pa.timestamp("us", tz), safe=False).cast(pa.int64())
        return found if is_catalogue else _within(found, found, lower, upper)
    assert unit is not None, "check_time_type asks for one"
    ticks = _TICKS_PER_SECOND[unit]
    bounds = (lower * ticks // _US, upper * ticks // _US)
    likely = _within(values, values, *bounds)  # before a product could overflow
    if pa.types.is_floating(kind):
        found = pc.round(pc.multiply(likely.cast(pa.float64()), _US / ticks)).cast(pa.int64())
    elif ticks <= _US:
        found = pc.multiply(likely.cast(pa.int64()), _US // ticks)
    else:
        found = pc.divide(likely.cast(pa.int64()), ticks // _US)
    return pc.if_else(pc.equal(values, 0), 0, found) if is_catalogue else found


def _within(values: pa.Array, of: pa.Array, lower: int, upper: int) -> pa.Array:
    is_likely = pc.and_(pc.greater_equal(of, lower), pc.less(of, upper))
    return pc.if_else(is_likely, values, pa.scalar(None, values.type))


def describe_time(value: object, unit: TimeUnit | None) -> str:
    """Says what a value that is not plausible would be, and which unit would make it so."""
    if not isinstance(value, int | float):
        return f"{value}; correct it, or give the log's days as time_range"
    assert unit is not None, "check_time_type asks for one"
    fitting = [
        (other, day)
        for other in _TICKS_PER_SECOND
        if (day := _day(value, other)) and 1990 <= int(day[:4]) < 2100
    ]
    if fitting and fitting[0][0] != unit:
        other, day = fitting[0]
        return f"{value} (unit: {unit}; as {other} it would be {day}: then write unit: {other})"
    return f"{value} (unit: {unit}; {_day(value, unit) or 'no day of the calendar'})"


def _day(value: float, unit: TimeUnit) -> str | None:
    try:
        return datetime.fromtimestamp(value / _TICKS_PER_SECOND[unit], UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return None

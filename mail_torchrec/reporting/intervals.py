"""Means over seeds with Student's 95 % intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its two-sided 95 % interval.

    The interval is Student's t unless the caller says otherwise (``reproduce`` fills in bootstrap
    intervals). One seed has no t-interval: ``low`` and ``high`` are then None.
    """

    mean: float
    low: float | None
    high: float | None
    num_seeds: int

    @property
    def half_width(self) -> float | None:
        """Half the length of the interval, None where there is none."""
        return None if self.high is None else self.high - self.mean


def seed_interval(values: Sequence[float | None]) -> Interval | None:
    """Computes the mean and Student's 95 % interval of one value a seed.

    Returns:
        None where the value of a seed is undefined.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    count = len(known)
    mean = math.fsum(known) / count
    if count == 1:
        return Interval(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (count - 1))
    half = t_quantile(count - 1) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def t_quantile(degrees: int, level: float = 0.95) -> float:
    """Computes the two-sided quantile q of Student's t: ``P(|T| < q) = level``.

    The distribution is a finite sum for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and
    26.7.4), and bisection inverts it.

    Raises:
        ValueError: ``degrees`` below 1, or ``level`` not between 0 and 1.
    """
    if degrees < 1 or not 0 < level < 1:
        raise ValueError(
            f"t_quantile: degrees should be >= 1 and level in (0, 1), received {degrees} and "
            f"{level}"
        )
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _t_probability(angle: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total

"""Exact sums of floats by group: no order of the rows and no number of ranks changes a bit.

Every finite double is an integer times ``UNIT``. The sums are Python integers of that unit, which
add up exactly; their quotients are rounded once. Shape: ``R`` rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MIN_EXPONENT = -1073
_MAX_EXPONENT = 1024
_MANTISSA_BITS = 53
_LOW_BITS = 27
_NUM_EXPONENTS = _MAX_EXPONENT - _MIN_EXPONENT + 1
_PIECE_ROWS = 2**20
"""Rows that are summed at a time: their halves of mantissas add up to less than 2**53."""

UNIT_BITS = _MANTISSA_BITS - _MIN_EXPONENT
"""The unit of the sums is ``2 ** -UNIT_BITS``, the smallest double's or less."""


def exact_sums(values_R: NDArray[Any], groups_R: NDArray[Any], num_groups: int) -> list[int]:
    """Sums the values of each group, in units of ``2 ** -UNIT_BITS``.

    Args:
        values_R: finite numbers.
        groups_R: group of each row, 0 .. num_groups - 1.
        num_groups: number of groups.

    Raises:
        ValueError: a value is infinite or nan.
    """
    totals = [0] * num_groups
    for start in range(0, len(values_R), _PIECE_ROWS):
        piece = slice(start, start + _PIECE_ROWS)
        _add_piece(totals, values_R[piece].astype(np.float64), groups_R[piece])
    return totals


def _add_piece(totals: list[int], values_R: NDArray[np.float64], groups_R: NDArray[Any]) -> None:
    """Adds the sums of a few rows.

    The mantissas are summed by group and exponent, in two halves that doubles hold exactly.
    """
    if not np.isfinite(values_R).all():
        raise ValueError(
            "values to sum should be finite, received nan or infinity; the model diverged"
        )
    fractions_R, exponents_R = np.frexp(values_R)
    mantissas_R = np.ldexp(fractions_R, _MANTISSA_BITS)
    high_R = np.floor(np.ldexp(mantissas_R, -_LOW_BITS))
    low_R = mantissas_R - np.ldexp(high_R, _LOW_BITS)
    bins_R = groups_R.astype(np.int64) * _NUM_EXPONENTS + (exponents_R - _MIN_EXPONENT)
    size = len(totals) * _NUM_EXPONENTS
    high, low = (np.bincount(bins_R, half_R, size) for half_R in (high_R, low_R))
    for filled in np.flatnonzero((high != 0) | (low != 0)).tolist():
        group, shift = divmod(filled, _NUM_EXPONENTS)
        totals[group] += ((int(high[filled]) << _LOW_BITS) + int(low[filled])) << shift

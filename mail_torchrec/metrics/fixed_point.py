"""Weights of rows as integers, whose sums do not depend on the order of the rows. ``R`` rows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TOTAL_BITS = 60


def unit_bits(largest: float, num_rows: int) -> int:
    """Returns the unit of the integers of weights, as its negative power of two.

    It is so small that ``num_rows`` rows of the largest weight stay below 2**60: for a billion rows
    2**-30 of the largest weight, for a thousand 2**-50.

    Args:
        largest: weight of all rows.
        num_rows: number of all rows.
    """
    return _TOTAL_BITS - int(np.frexp(largest * num_rows)[1])


def fixed_point(weights_R: NDArray[Any], bits: int) -> NDArray[np.int64]:
    """Rounds weights to multiples of ``2 ** -bits``, and counts these, [R].

    Args:
        weights_R: not negative.
        bits: of :func:`unit_bits`.
    """
    return np.rint(np.ldexp(weights_R.astype(np.float64), bits)).astype(np.int64)


def overflows(total: int) -> bool:
    """Returns whether pairs of so many rows (or units of weight) need more than 63 bits."""
    return total >= 2**32

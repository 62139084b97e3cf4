"""Jagged NumPy arrays: rows of different lengths, as slices of one array.

Shapes: ``R`` rows, ``S`` stored values, ``V`` values of all rows end to end.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.data.parquet.arrow import Bools, Ints


@dataclass
class JaggedArray:
    """Rows of different lengths in one array (TorchRec's JaggedTensor, with optional starts).

    ``[[7, 8], [], [9]]`` is ``JaggedArray([7, 8, 9], [2, 0, 1])``; values are ids, or numbers. Rows
    stand end to end unless ``given_starts`` is given. Rows may share values, and taking rows copies
    no values.
    """

    stored: NDArray[Any]
    """Values of the rows, [S]; with ``given_starts`` perhaps also values of no row."""
    lengths: Ints
    """Number of values of each row, [R]."""
    given_starts: Ints | None = None
    """Start of each row in ``stored``, [R]; None where the rows stand end to end."""

    @cached_property
    def starts(self) -> Ints:
        """Start of each row in ``stored``, [R]."""
        if self.given_starts is not None:
            return self.given_starts
        starts_R: Ints = np.cumsum(self.lengths) - self.lengths
        return starts_R

    @cached_property
    def values(self) -> NDArray[Any]:
        """Values of all rows, end to end, [V]."""
        return self.stored if self.given_starts is None else self.stored[self.positions]

    @property
    def positions(self) -> Ints:
        """Position of each of ``values`` in ``stored``, [V]."""
        offsets_R = np.cumsum(self.lengths) - self.lengths
        shifts_V = np.repeat(self.starts - offsets_R, self.lengths)
        positions_V: Ints = np.arange(self.lengths.sum()) + shifts_V
        return positions_V

    def take(self, rows: Ints | slice) -> "JaggedArray":
        """Returns some of the rows, in the given order.

        Args:
            rows: their indices [rows], or a slice.
        """
        return JaggedArray(self.stored, self.lengths[rows], self.starts[rows])

    def newest(self, limit: int | Ints) -> "JaggedArray":
        """Cuts every row to its last ``limit`` values.

        Args:
            limit: one for all rows, or one for each row [R].
        """
        excess_R = np.maximum(self.lengths - limit, 0)
        if not excess_R.any():
            return self
        return JaggedArray(self.stored, self.lengths - excess_R, self.starts + excess_R)

    def trimmed(self) -> "JaggedArray":
        """Drops stored values before the first and after the last that a row has.

        The rows then keep no larger array alive than they need.
        """
        if self.given_starts is None:
            return self
        is_full_R = self.lengths > 0
        if not is_full_R.any():
            return JaggedArray(self.stored[:0], self.lengths, np.zeros_like(self.lengths))
        first = int(self.starts[is_full_R].min())
        stop = int((self.starts + self.lengths)[is_full_R].max())
        starts_R = np.where(is_full_R, self.starts - first, 0)
        return JaggedArray(self.stored[first:stop], self.lengths, starts_R)

    def last(self, default: int) -> Ints:
        """Returns the last value of each row [R], ``default`` where a row is empty."""
        last_R = np.full(len(self.lengths), default, dtype=np.int64)
        is_full_R = self.lengths > 0
        last_R[is_full_R] = self.stored[(self.starts + self.lengths - 1)[is_full_R]]
        return last_R

    def count(self, marked_V: Bools) -> Ints:
        """Counts in each row [R] how many of its values are marked."""
        if not marked_V.any():
            return np.zeros_like(self.lengths)
        before, ends_R = np.concatenate([[0], np.cumsum(marked_V)]), np.cumsum(self.lengths)
        counts_R: Ints = before[ends_R] - before[ends_R - self.lengths]
        return counts_R

    @staticmethod
    def concatenate(parts: "list[JaggedArray]") -> "JaggedArray":
        """Appends the rows of several arrays to one another."""
        trimmed = [part.trimmed() for part in parts]
        offsets = np.cumsum([0, *(len(part.stored) for part in trimmed)])
        starts = [part.starts + offset for part, offset in zip(trimmed, offsets[:-1], strict=True)]
        return JaggedArray(
            np.concatenate([part.stored for part in trimmed]),
            np.concatenate([part.lengths for part in trimmed]),
            np.concatenate(starts),
        )

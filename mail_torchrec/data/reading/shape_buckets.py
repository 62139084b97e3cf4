"""Sizes that counts of a batch are rounded up to, so that few shapes occur.

Shape letters: ``N`` entries, ``S`` of them rounded up, ``X`` all other axes.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

_LEAST = 16
"""Counts up to this are one bucket, those of 0 too."""


@dataclass(frozen=True)
class ShapeBuckets:
    """Ladder of sizes: the powers of two, and ``steps`` even steps from each to the next.

    With 4 steps: 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, ... So at most a ``steps``-th is added,
    and counts that differ by a few per cent have one size or two.

    Args:
        steps: from a power of two to the next.
    """

    steps: int

    @staticmethod
    def of(steps: int | None) -> "ShapeBuckets | None":
        """Returns the ladder of ``data.shape_buckets``; None without one."""
        return None if steps is None else ShapeBuckets(steps)

    def size(self, count: int) -> int:
        """Rounds a count up."""
        if count <= _LEAST:
            return _LEAST
        below = 1 << ((count - 1).bit_length() - 1)  # the greatest power of two below
        step = max(below // self.steps, 1)
        return -(-count // step) * step

    def fill_up(self, x_NX: Tensor, value: float) -> Tensor:
        """Appends entries of one value up to a size of the ladder, [S, ...].

        Args:
            x_NX: [N, ...].
            value: of the appended entries.
        """
        sides = (0, 0) * (x_NX.dim() - 1)
        return functional.pad(x_NX, (*sides, 0, self.size(len(x_NX)) - len(x_NX)), value=value)

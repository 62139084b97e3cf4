"""Gathering of per-user and per-row values to the real positions of behaviour sequences, and back.

Shape letters: ``B`` rows, ``U`` users, ``T`` positions of a sequence, ``N`` real positions of all
rows, ``X`` elements; ``P`` stands for the leading axes that a :class:`Positions` works on.
"""

from typing import Protocol

import torch
from torch import Tensor

from mail_torchrec.towers.layers.gathering import gather
from mail_torchrec.towers.layers.sequences import BehaviourSequence, DedupSequence


class Positions(Protocol):
    """Access to the positions ``P`` at which work on a sequence is done."""

    def gather_users(self, x_UTX: Tensor) -> Tensor:
        """Gathers per-user values of each position, [U, T, X] -> [P, X]."""

    def gather_rows(self, x_BX: Tensor) -> Tensor:
        """Gathers per-row values, [B, X] -> [P, X] or a shape that broadcasts to it."""

    def to_padded(self, x_P: Tensor) -> Tensor:
        """Returns per-position values as [B, T]: finite, but undefined behind a row's length."""


class PaddedPositions:
    """All positions [B, T], padding included: shapes are fixed, as compilers want them."""

    def __init__(self, sequence: BehaviourSequence) -> None:
        self._sequence = sequence

    def gather_users(self, x_UTX: Tensor) -> Tensor:
        """[U, T, X] -> [B, T, X]."""
        return self._sequence.to_rows(x_UTX)

    def gather_rows(self, x_BX: Tensor) -> Tensor:
        """[B, X] -> [B, 1, X]."""
        return x_BX.unsqueeze(1)

    def to_padded(self, x_BT: Tensor) -> Tensor:
        """[B, T] -> the same."""
        return x_BT


class RealPositions:
    """The ``N`` real positions, row by row: nothing is computed for padding.

    Args:
        sequence: the behaviours.
        bound: at least as many as there are real positions; then ``N`` is the bound, and surplus
            positions count for nothing. None counts the real ones, for which the host would wait
            for a GPU.

    Attributes:
        row_N: row of each position (int64).
        user_place_N: place of each position in its user's sequence, among all U T (int64).
    """

    def __init__(self, sequence: BehaviourSequence, bound: int | None = None) -> None:
        self._shape = sequence.values_BTD.shape[:2]
        num_positions = self._shape[1]
        self._place_N = (
            torch.nonzero(sequence.mask_BT.flatten()).squeeze(1)
            if bound is None
            else _bounded_places(sequence, min(bound, self._shape.numel()))
        )
        # Surplus positions stand one behind all places.
        place_N = self._place_N.clamp(max=self._shape.numel() - 1)
        self.row_N = place_N // num_positions
        self.user_place_N = place_N
        if isinstance(sequence, DedupSequence):
            user_N = sequence.inverse_indices_B[self.row_N]
            self.user_place_N = user_N * num_positions + place_N % num_positions

    def gather_users(self, x_UTX: Tensor) -> Tensor:
        """[U, T, X] -> [N, X]."""
        return gather(x_UTX.flatten(0, 1), self.user_place_N)

    def gather_rows(self, x_BX: Tensor) -> Tensor:
        """[B, X] -> [N, X]."""
        return gather(x_BX, self.row_N)

    def to_padded(self, x_N: Tensor) -> Tensor:
        """[N] -> [B, T] with zeros behind each row's length."""
        num_places = self._shape.numel()
        padded = x_N.new_zeros(num_places + 1).index_copy(0, self._place_N, x_N)
        return padded[:num_places].view(self._shape)


def _bounded_places(sequence: BehaviourSequence, bound: int) -> Tensor:
    """Places [bound] of the real positions among all B T, and B T where there is no more."""
    lengths_B, num_positions = sequence.lengths_B, sequence.values_BTD.shape[1]
    num_rows, ends_B = len(lengths_B), lengths_B.cumsum(0)
    order_N = torch.arange(bound, device=lengths_B.device)
    row_N = torch.searchsorted(ends_B, order_N, right=True)
    starts_B1 = torch.nn.functional.pad(ends_B, (1, 0))
    place_N = row_N * num_positions + order_N - starts_B1.index_select(0, row_N)
    return place_N.clamp(max=num_rows * num_positions)


def select_positions(sequence: BehaviourSequence) -> Positions:
    """Selects the real positions of a sequence, or all of them under torch.compile and export."""
    if torch.compiler.is_compiling():
        return PaddedPositions(sequence)
    is_counted = sequence.lengths_B.device.type == "cpu" and not sequence.fixes_positions
    return RealPositions(sequence, None if is_counted else sequence.max_positions)

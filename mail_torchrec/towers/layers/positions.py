"""Gathering of per-user and per-row values to the real positions of behaviour sequences, and back.

Shape letters: ``B`` rows, ``U`` users, ``T`` positions of a sequence, ``N`` real positions of all
rows, ``X`` elements; ``P`` stands for the leading axes that a :class:`Positions` works on.
"""

from typing import Protocol

import torch
from torch import Tensor

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
    """The ``N`` real positions, row by row: nothing is computed for padding."""

    def __init__(self, sequence: BehaviourSequence) -> None:
        mask_BT = sequence.mask_BT
        num_positions = mask_BT.shape[1]
        self._shape = mask_BT.shape
        self._place_N = torch.nonzero(mask_BT.flatten()).squeeze(1)
        self._row_N = self._place_N // num_positions
        self._user_place_N = self._place_N
        if isinstance(sequence, DedupSequence):
            user_N = sequence.inverse_indices_B[self._row_N]
            self._user_place_N = user_N * num_positions + self._place_N % num_positions

    def gather_users(self, x_UTX: Tensor) -> Tensor:
        """[U, T, X] -> [N, X]."""
        return x_UTX.flatten(0, 1).index_select(0, self._user_place_N)

    def gather_rows(self, x_BX: Tensor) -> Tensor:
        """[B, X] -> [N, X]."""
        return x_BX.index_select(0, self._row_N)

    def to_padded(self, x_N: Tensor) -> Tensor:
        """[N] -> [B, T] with zeros behind each row's length."""
        padded = x_N.new_zeros(self._shape.numel()).index_copy(0, self._place_N, x_N)
        return padded.view(self._shape)


def select_positions(sequence: BehaviourSequence) -> Positions:
    """Selects the real positions of a sequence, or all of them under torch.compile and export."""
    if torch.compiler.is_compiling():
        return PaddedPositions(sequence)
    return RealPositions(sequence)

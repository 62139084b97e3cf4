"""The positions of behaviour sequences that work is done on: the real ones alone, or all of them."""

from typing import Protocol

import torch
from torch import Tensor

from mail_torchrec.towers.inputs import BehaviourSequence, DedupSequence


class Positions(Protocol):
    """Brings what users and rows have to the positions ``P``, and what was computed there back."""

    def of_users(self, x_UTX: Tensor) -> Tensor:
        """What each user has at each position, at the positions of the rows."""

    def of_rows(self, x_BX: Tensor) -> Tensor:
        """What each row has, at its positions or so that it broadcasts to them."""

    def back(self, x_P: Tensor) -> Tensor:
        """Numbers of the positions as [B, T]; finite behind a row's length, and without meaning there."""


class AllPositions:
    """[B, T], padding and all: of fixed shape, as compilers want it."""

    def __init__(self, sequence: BehaviourSequence) -> None:
        self._sequence = sequence

    def of_users(self, x_UTX: Tensor) -> Tensor:
        """[B, T, X]."""
        return self._sequence.spread(x_UTX)

    def of_rows(self, x_BX: Tensor) -> Tensor:
        """[B, 1, X]."""
        return x_BX.unsqueeze(1)

    def back(self, x_BT: Tensor) -> Tensor:
        """As it is."""
        return x_BT


class RealPositions:
    """``N`` positions, those of a row side by side: nothing is computed for padding."""

    def __init__(self, sequence: BehaviourSequence) -> None:
        mask_BT = sequence.mask_BT
        self._shape = mask_BT.shape
        self._place_N = torch.nonzero(mask_BT.flatten()).squeeze(1)
        self._row_N = self._place_N // mask_BT.shape[1]
        self._place_of_user_N = self._place_N
        if isinstance(sequence, DedupSequence):
            self._place_of_user_N = (
                sequence.user_of_row_B[self._row_N] * mask_BT.shape[1]
                + self._place_N % mask_BT.shape[1]
            )

    def of_users(self, x_UTX: Tensor) -> Tensor:
        """[N, X]."""
        return x_UTX.flatten(0, 1).index_select(0, self._place_of_user_N)

    def of_rows(self, x_BX: Tensor) -> Tensor:
        """[N, X]."""
        return x_BX.index_select(0, self._row_N)

    def back(self, x_N: Tensor) -> Tensor:
        """Zeros behind a row's length."""
        return (
            x_N.new_zeros(self._shape.numel()).index_copy(0, self._place_N, x_N).view(self._shape)
        )


def positions_of(sequence: BehaviourSequence) -> Positions:
    """The real ones, but for a compiler all of them."""
    return AllPositions(sequence) if torch.compiler.is_compiling() else RealPositions(sequence)

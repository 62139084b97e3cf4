"""Replacement of the behaviours of cold users: by virtual ones, or by none.

Shape letters as in ``towers/inputs.py``; ``V`` the rows that get virtual behaviours, ``W`` warm
users.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mail_torchrec.towers.inputs import RankingInputs
from mail_torchrec.towers.layers.behaviours import Behaviours
from mail_torchrec.towers.layers.sequences import BehaviourSequence


@dataclass(frozen=True)
class ColdUsers:
    """Users that one pass of the model scores as cold ones."""

    is_cold_U: Tensor
    """Users without usable behaviours (bool)."""
    as_cold_U: Tensor | None = None
    """Users to be treated like them (bool); None for none."""
    known_V: Tensor | None = None
    """Indices of both (int64); None where only the masks tell."""
    max_rows: int | None = None
    """Upper bound of the number of their rows, which the host knows; None where it knows none."""

    @property
    def is_filled_U(self) -> Tensor:
        """Users without usable behaviours, and those treated like them (bool)."""
        return self.is_cold_U if self.as_cold_U is None else self.is_cold_U | self.as_cold_U

    @property
    def dropped_U(self) -> Tensor | None:
        """Users with usable behaviours that are treated as cold (bool); None for none."""
        return None if self.as_cold_U is None else self.as_cold_U & ~self.is_cold_U

    @property
    def rows_V(self) -> Tensor:
        """Indices of these users (int64)."""
        if self.known_V is not None:
            return self.known_V
        return torch.nonzero(self.is_filled_U).squeeze(1)

    def with_dropped(self, warm_W: Tensor, share: float, num_rows: int) -> "ColdUsers":
        """Draws warm users who are treated as cold ones in this step.

        On a GPU the host draws their number, and the device who they are: so nobody waits for it.
        To draw each user by itself, as on the host, has the same distribution.

        Args:
            warm_W: indices of the warm users.
            share: of them that is drawn.
            num_rows: of all users.
        """
        num_users, device = len(self.is_cold_U), self.is_cold_U.device
        if device.type == "cpu":
            is_dropped_U = ~self.is_cold_U & (torch.rand(num_users) < share)
            return ColdUsers(self.is_cold_U, is_dropped_U)
        number = int((torch.rand(len(warm_W)) < share).sum())
        dropped_N = warm_W[torch.randperm(len(warm_W), device=device)[:number]]
        is_dropped_U = torch.zeros_like(self.is_cold_U).index_fill(0, dropped_N, True)
        most = num_rows - num_users + 1  # rows of one user: each other has one at least
        max_rows = None if self.max_rows is None else min(self.max_rows + number * most, num_rows)
        known_V = torch.cat([self.rows_V, dropped_N])
        return ColdUsers(self.is_cold_U, is_dropped_U, known_V, max_rows)


def with_virtual_behaviours(
    inputs: RankingInputs,
    rows_V: Tensor,
    virtual: dict[str, Behaviours],
    max_rows: int | None = None,
) -> RankingInputs:
    """Returns the inputs with virtual behaviours in some rows (Feng et al. 2021, Eq. 10).

    Args:
        inputs: one row a user.
        rows_V: indices of the rows that get them (int64).
        virtual: sequence -> virtual behaviours [V, T, D] and their number [V].
        max_rows: of ``ColdUsers``.
    """
    sequences = {
        name: _with_virtual(sequence, rows_V, max_rows, *virtual[name])
        for name, sequence in inputs.sequences.items()
    }
    return replace(inputs, sequences=sequences)


def _with_virtual(
    sequence: BehaviourSequence,
    rows_V: Tensor,
    max_rows: int | None,
    values_VTD: Tensor,
    lengths_V: Tensor,
) -> BehaviourSequence:
    values_VTD = values_VTD.to(sequence.values_BTD.dtype)
    lengths_V = lengths_V.to(sequence.lengths_B.dtype)
    return replace(
        sequence,
        values_BTD=sequence.values_BTD.index_copy(0, rows_V, values_VTD),
        lengths_B=sequence.lengths_B.index_copy(0, rows_V, lengths_V),
        actions_BT=sequence.actions_BT.index_fill(0, rows_V, 0),
        is_virtual_B=sequence.is_virtual_B.index_fill(0, rows_V, True),
        max_positions=_bound(sequence, sequence.max_positions, values_VTD.shape[0]),
        max_row_positions=_bound(sequence, sequence.max_row_positions, max_rows),
    )


def _bound(sequence: BehaviourSequence, before: int | None, num_filled: int | None) -> int | None:
    """Upper bound of the positions when some rows are filled up, from that before."""
    if before is None or num_filled is None:
        return None
    max_length: int = sequence.values_BTD.shape[1]
    return before + num_filled * max_length


def without_behaviours(inputs: RankingInputs, removed_B: Tensor) -> RankingInputs:
    """Returns the inputs with empty behaviour sequences in some rows.

    Args:
        inputs: any rows.
        removed_B: True where the behaviours are removed (bool).
    """
    sequences = {
        name: replace(
            sequence,
            values_BTD=sequence.values_BTD.masked_fill(removed_B[:, None, None], 0.0),
            lengths_B=sequence.lengths_B.masked_fill(removed_B, 0),
            actions_BT=sequence.actions_BT.masked_fill(removed_B[:, None], 0),
        )
        for name, sequence in inputs.sequences.items()
    }
    return replace(inputs, sequences=sequences)

"""Replacement of the behaviours of cold users: by virtual ones, or by none.

Shape letters as in ``towers/inputs.py``; ``V`` the rows that get virtual behaviours, ``W`` warm
users.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mail_torchrec.towers.inputs import RankingInputs
from mail_torchrec.towers.layers.behaviours import Behaviours
from mail_torchrec.towers.layers.sequences import BehaviourSequence, position_mask


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
    num_real: Mapping[str, Tensor] | None = None,
) -> RankingInputs:
    """Returns the inputs with virtual behaviours in some rows (Feng et al. 2021, Eq. 10).

    Args:
        inputs: one row a user.
        rows_V: indices of the rows that get them (int64).
        virtual: sequence -> virtual behaviours [V, T, D] and their number [V].
        max_rows: of ``ColdUsers``.
        num_real: sequence -> how many behaviours in front are real ones [V], whose actions stay;
            None for none.
    """
    sequences = {
        name: _with_virtual(
            sequence, rows_V, max_rows, *virtual[name], num_real[name] if num_real else None
        )
        for name, sequence in inputs.sequences.items()
    }
    return replace(inputs, sequences=sequences)


def _real_actions(actions_BT: Tensor, rows_V: Tensor, num_real_V: Tensor | None) -> Tensor:
    """Leaves out the actions of virtual behaviours, which have none."""
    if num_real_V is None:
        return actions_BT.index_fill(0, rows_V, 0)
    real_VT = actions_BT.index_select(0, rows_V) * position_mask(num_real_V, actions_BT.shape[1])
    return actions_BT.index_copy(0, rows_V, real_VT)


def _with_virtual(
    sequence: BehaviourSequence,
    rows_V: Tensor,
    max_rows: int | None,
    values_VTD: Tensor,
    lengths_V: Tensor,
    num_real_V: Tensor | None,
) -> BehaviourSequence:
    values_VTD = values_VTD.to(sequence.values_BTD.dtype)
    lengths_V = lengths_V.to(sequence.lengths_B.dtype)
    return replace(
        sequence,
        values_BTD=sequence.values_BTD.index_copy(0, rows_V, values_VTD),
        lengths_B=sequence.lengths_B.index_copy(0, rows_V, lengths_V),
        actions_BT=_real_actions(sequence.actions_BT, rows_V, num_real_V),
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


def mixed_behaviours(
    users: RankingInputs, cold: ColdUsers, virtual: Mapping[str, Behaviours], strength: float
) -> tuple[dict[str, Behaviours], dict[str, Tensor]]:
    """Puts the few real behaviours of cold users in front of virtual ones, by count.

    With ``n`` real behaviours of mean ``m``, a virtual one behind them becomes ``(k v + n m) / (k +
    n)``: its mean given the attributes, as if they were worth ``k`` behaviours. Without a real one
    it stays ``v``. Users who are treated as cold ones have none.

    Args:
        users: with the real behaviours.
        cold: users that get virtual behaviours.
        virtual: sequence -> virtual behaviours [V, T, D] and their number [V].
        strength: k.

    Returns:
        Sequence -> mixed behaviours [V, T, D] and their number [V]; and sequence -> how many of
        them are real [V].
    """
    rows_V = cold.rows_V
    is_cold_V = cold.is_cold_U.index_select(0, rows_V)
    mixed: dict[str, Behaviours] = {}
    num_real: dict[str, Tensor] = {}
    for name, (virtual_VTD, virtual_lengths_V) in virtual.items():
        sequence = users.sequences[name]
        num_real_V = sequence.lengths_B.index_select(0, rows_V) * is_cold_V
        num_positions = virtual_VTD.shape[1]
        is_real_VT1 = position_mask(num_real_V, num_positions).unsqueeze(2)
        real_VTD = sequence.values_BTD.index_select(0, rows_V).masked_fill(~is_real_VT1, 0.0)
        count_V11 = num_real_V.to(real_VTD.dtype)[:, None, None]
        sum_V1D = real_VTD.sum(1, keepdim=True)
        shrunk_VTD = (strength * virtual_VTD + sum_V1D) / (strength + count_V11)
        lengths_V = torch.maximum(num_real_V, virtual_lengths_V.to(num_real_V.dtype))
        is_any_VT1 = position_mask(lengths_V, num_positions).unsqueeze(2)
        mixed[name] = torch.where(is_real_VT1, real_VTD, shrunk_VTD * is_any_VT1), lengths_V
        num_real[name] = num_real_V
    return mixed, num_real


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

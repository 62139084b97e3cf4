"""Replacement of the behaviours of cold users: by virtual ones, or by none.

Shape letters as in ``towers/inputs.py``; ``V`` the rows that get virtual behaviours, ``W`` warm
users.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mail_torchrec.data.reading.shape_buckets import ShapeBuckets
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
    buckets: ShapeBuckets | None = None
    """Sizes of ``known_V``, filled up with an index that is none (see ``RowSets``); None where it
    has no such index."""

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

    @property
    def readable_V(self) -> Tensor:
        """The same, with the last user's index in place of surplus ones (int64)."""
        rows_V = self.rows_V
        return rows_V if self.buckets is None else rows_V.clamp(max=len(self.is_cold_U) - 1)

    def with_dropped(
        self, warm_W: Tensor, share: float, num_rows: int, num_surplus: int = 0
    ) -> "ColdUsers":
        """Draws warm users who are treated as cold ones in this step.

        On a GPU, and with buckets, the host draws their number, and the device who they are: so
        nobody waits for it. To draw each user by itself, as else on the host, has the same
        distribution.

        Args:
            warm_W: indices of the warm users.
            share: of them that is drawn.
            num_rows: of all users.
            num_surplus: users without rows, who only fill up.
        """
        num_users, device = len(self.is_cold_U), self.is_cold_U.device
        if device.type == "cpu" and self.buckets is None:
            is_dropped_U = ~self.is_cold_U & (torch.rand(num_users) < share)
            return ColdUsers(self.is_cold_U, is_dropped_U)
        number = int((torch.rand(len(warm_W)) < share).sum())
        dropped_N = warm_W[torch.randperm(len(warm_W), device=device)[:number]]
        has_surplus = self.buckets is not None
        nobody_U = torch.zeros_like(self.is_cold_U)
        is_dropped_U = _filled(nobody_U, dropped_N, True, has_surplus=has_surplus)
        if self.buckets is not None:
            dropped_N = self.buckets.fill_up(dropped_N, num_users)
        # Rows of one user: each other has one at least.
        most = num_rows - (num_users - num_surplus) + 1
        max_rows = None if self.max_rows is None else min(self.max_rows + number * most, num_rows)
        known_V = torch.cat([self.rows_V, dropped_N])
        return ColdUsers(self.is_cold_U, is_dropped_U, known_V, max_rows, self.buckets)


def with_virtual_behaviours(
    inputs: RankingInputs,
    cold: ColdUsers,
    virtual: dict[str, Behaviours],
    num_real: Mapping[str, Tensor] | None = None,
) -> RankingInputs:
    """Returns the inputs with virtual behaviours in some rows (Feng et al. 2021, Eq. 10).

    Args:
        inputs: one row a user.
        cold: the rows that get them.
        virtual: sequence -> virtual behaviours [V, T, D] and their number [V].
        num_real: sequence -> how many behaviours in front are real ones [V], whose actions stay;
            None for none.
    """
    sequences = {
        name: _with_virtual(sequence, cold, *virtual[name], num_real[name] if num_real else None)
        for name, sequence in inputs.sequences.items()
    }
    return replace(inputs, sequences=sequences)


def _copied(x_UX: Tensor, rows_V: Tensor, values_VX: Tensor, *, has_surplus: bool) -> Tensor:
    """Values [U, ...] with those of some rows replaced."""
    if not has_surplus:
        return x_UX.index_copy(0, rows_V, values_VX)
    return torch.cat([x_UX, x_UX[:1]]).index_copy_(0, rows_V, values_VX)[:-1]


def _filled(x_UX: Tensor, rows_V: Tensor, value: float, *, has_surplus: bool) -> Tensor:
    """Values [U, ...] with one value in some rows."""
    if not has_surplus:
        return x_UX.index_fill(0, rows_V, value)
    return torch.cat([x_UX, x_UX[:1]]).index_fill_(0, rows_V, value)[:-1]


def _real_actions(actions_BT: Tensor, cold: ColdUsers, num_real_V: Tensor | None) -> Tensor:
    """Leaves out the actions of virtual behaviours, which have none."""
    has_surplus, rows_V = cold.buckets is not None, cold.rows_V
    if num_real_V is None:
        return _filled(actions_BT, rows_V, 0, has_surplus=has_surplus)
    is_real_VT = position_mask(num_real_V, actions_BT.shape[1])
    real_VT = actions_BT.index_select(0, cold.readable_V) * is_real_VT
    return _copied(actions_BT, rows_V, real_VT, has_surplus=has_surplus)


def _with_virtual(
    sequence: BehaviourSequence,
    cold: ColdUsers,
    values_VTD: Tensor,
    lengths_V: Tensor,
    num_real_V: Tensor | None,
) -> BehaviourSequence:
    values_VTD = values_VTD.to(sequence.values_BTD.dtype)
    lengths_V = lengths_V.to(sequence.lengths_B.dtype)
    rows_V, has_surplus = cold.rows_V, cold.buckets is not None
    return replace(
        sequence,
        values_BTD=_copied(sequence.values_BTD, rows_V, values_VTD, has_surplus=has_surplus),
        lengths_B=_copied(sequence.lengths_B, rows_V, lengths_V, has_surplus=has_surplus),
        actions_BT=_real_actions(sequence.actions_BT, cold, num_real_V),
        is_virtual_B=_filled(sequence.is_virtual_B, rows_V, True, has_surplus=has_surplus),
        max_positions=_bound(sequence, sequence.max_positions, values_VTD.shape[0], cold),
        max_row_positions=_bound(sequence, sequence.max_row_positions, cold.max_rows, cold),
    )


def _bound(
    sequence: BehaviourSequence, before: int | None, num_filled: int | None, cold: ColdUsers
) -> int | None:
    """Upper bound of the positions when some rows are filled up, from that before."""
    if before is None or num_filled is None:
        return None
    bound = before + num_filled * int(sequence.values_BTD.shape[1])
    return bound if cold.buckets is None else cold.buckets.size(bound)


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
    rows_V = cold.readable_V
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

"""Padded behaviour sequences, one a row or one a user that several rows share.

Shape letters: ``B`` rows, ``U`` users (every row is a user of its own where rows share none),
``T`` positions of the sequence, ``K`` sampled negatives, ``D`` elements of a vector.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mail_torchrec.towers.layers.gathering import gather


def position_mask(lengths_B: Tensor, num_positions: int) -> Tensor:
    """Returns [B, num_positions], True on the first ``lengths_B[b]`` positions of row ``b``."""
    return torch.arange(num_positions, device=lengths_B.device) < lengths_B.unsqueeze(1)


@dataclass
class MatchInputs:
    """Output-side vectors (table V' of DMR) and log counts for a sampled-softmax match loss.

    ``K`` is 0 outside training.
    """

    target_BD: Tensor
    """V' of the target item."""
    last_UD: Tensor
    """V' of each user's newest behaviour (the vector of row 0 where there is none)."""
    negatives_KD: Tensor
    """V' of the sampled negatives, shared by the batch."""
    last_ids_U: Tensor
    """Rows of the newest behaviours in the item table (int64)."""
    negative_ids_K: Tensor
    """Rows of the sampled negatives in the item table (int64)."""
    last_log_q_U: Tensor
    """Log of the expected count of each newest behaviour among the K samples."""
    negative_log_q_K: Tensor
    """Log of the expected count of each negative among the K samples."""


@dataclass
class BehaviourSequence:
    """One behaviour sequence of each row, oldest behaviour first, padded behind.

    A row of length 2 with T = 4::

        values_BTD[b] = [v_1, v_2, 0, 0]     lengths_B[b] = 2     newest = v_2
    """

    values_BTD: Tensor
    """Behaviour vectors; what stands behind a row's length is not to be read."""
    lengths_B: Tensor
    """Number of behaviours (int64)."""
    actions_BT: Tensor
    """Rows of the action table, 0 on padding, on virtual behaviours and where there are no actions
    (int64)."""
    target_BD: Tensor
    """The target item's vector from the table that the behaviours share."""
    is_virtual_B: Tensor
    """True where the behaviours are virtual: made by the zero-shot tower or a baseline (bool)."""
    match: MatchInputs | None = None
    """Inputs of the match loss, where the tower asks for one."""
    max_positions: int | None = None
    """Upper bound of the sum of ``lengths_B``, which the host knows without waiting for a GPU; None
    where it knows none."""
    max_row_positions: int | None = None
    """The same over the rows that share these users, where rows share users."""
    fixes_positions: bool = False
    """Work goes over ``max_positions`` positions on a CPU too, which else counts the real ones."""

    @property
    def users(self) -> "BehaviourSequence":
        """The sequence once a user, for work that does not depend on the target item."""
        return self

    def to_rows(self, x_U: Tensor) -> Tensor:
        """Repeats per-user values [U, ...] for every row of the user, [B, ...]."""
        return x_U

    @property
    def mask_BT(self) -> Tensor:
        """True on real positions, False on padding (bool)."""
        return position_mask(self.lengths_B, self.values_BTD.shape[1])

    @property
    def real_BTD(self) -> Tensor:
        """The vectors with zeros behind each row's length."""
        # Several layers ask for them. A functools.cached_property would do, but torch.export
        # cannot trace one.
        real_BTD: Tensor | None = getattr(self, "_real_BTD", None)
        if real_BTD is None:
            real_BTD = self.values_BTD.masked_fill(~self.mask_BT.unsqueeze(2), 0.0)
            self._real_BTD = real_BTD
        return real_BTD

    @property
    def sum_BD(self) -> Tensor:
        """The sum of the real vectors."""
        return self.to_rows(self.users.real_BTD.sum(1))

    @property
    def mean_BD(self) -> Tensor:
        """The mean of the real vectors, zeros where a row has none."""
        users = self.users
        return self.to_rows(users.real_BTD.sum(1) / users.lengths_B.clamp(min=1).unsqueeze(1))


@dataclass
class DedupSequence(BehaviourSequence):
    """Behaviour sequence of rows that share users (RecD, Zhao et al., MLSys 2023).

    Rows share users as the candidates of one request and the impressions of one visit do. Work on
    :attr:`users` is done once a user. ``values_BTD`` holds zeros behind each row's length.
    """

    user_sequence: BehaviourSequence = field(kw_only=True)
    """The sequences of the users, one row a user; its target is not to be read."""
    inverse_indices_B: Tensor = field(kw_only=True)
    """The place of each row's user in ``user_sequence`` (int64)."""

    @staticmethod
    def from_users(
        users: BehaviourSequence,
        inverse_indices_B: Tensor,
        target_BD: Tensor,
        match: MatchInputs | None,
    ) -> "DedupSequence":
        """Joins the behaviours of each row's user to the row's target item.

        Args:
            users: the sequence once a user.
            inverse_indices_B: the place of each row's user.
            target_BD: vector of each row's target item.
            match: inputs of the match loss, where there is one.
        """
        return DedupSequence(
            values_BTD=gather(users.real_BTD, inverse_indices_B),
            lengths_B=users.lengths_B.index_select(0, inverse_indices_B),
            actions_BT=users.actions_BT.index_select(0, inverse_indices_B),
            target_BD=target_BD,
            is_virtual_B=users.is_virtual_B.index_select(0, inverse_indices_B),
            match=match,
            max_positions=users.max_row_positions,
            fixes_positions=users.fixes_positions,
            user_sequence=users,
            inverse_indices_B=inverse_indices_B,
        )

    @property
    def one_row_U(self) -> Tensor:
        """The index of one row of each user (int64)."""
        rows_B = torch.arange(len(self.inverse_indices_B), device=self.inverse_indices_B.device)
        return rows_B.new_zeros(len(self.user_sequence.lengths_B)).index_copy(
            0, self.inverse_indices_B, rows_B
        )

    def expanded(self) -> BehaviourSequence:
        """Returns the same rows with every row a user of its own."""
        return BehaviourSequence(
            self.values_BTD,
            self.lengths_B,
            self.actions_BT,
            self.target_BD,
            self.is_virtual_B,
            self.match,
            self.max_positions,
            fixes_positions=self.fixes_positions,
        )

    @property
    def users(self) -> BehaviourSequence:
        """The sequence once a user."""
        return self.user_sequence

    def to_rows(self, x_U: Tensor) -> Tensor:
        """Repeats per-user values [U, ...] for every row of the user, [B, ...]."""
        return gather(x_U, self.inverse_indices_B)

    @property
    def real_BTD(self) -> Tensor:
        """The vectors, which were masked once a user."""
        return self.values_BTD


def expand_sequences(sequences: dict[str, BehaviourSequence]) -> dict[str, BehaviourSequence]:
    """Returns the sequences with every row a user of its own."""
    return {
        name: sequence.expanded() if isinstance(sequence, DedupSequence) else sequence
        for name, sequence in sequences.items()
    }

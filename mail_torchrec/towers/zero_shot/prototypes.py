"""Prototypes of behaviours: a moving mixture that sums up the vectors of a sequence.

Shape letters: ``N`` rows, ``T`` positions, ``S`` sequences, ``K`` prototypes of a sequence,
``D`` elements of a vector, ``B`` behaviours of all rows.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mail_torchrec.distributed.collectives import sum_over_ranks
from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.behaviours import Behaviours, virtual_lengths
from mail_torchrec.towers.layers.sequences import position_mask

_TINY = 1e-12


class BehaviourPrototypes(nn.Module):
    """K vectors that behaviours gather round, by online expectation maximisation.

    Each behaviour belongs to prototype ``k`` with ``r_k = softmax_k(-|v - c_k|^2 / (2 s^2))``. A
    prototype is the moving mean of its behaviours, ``s^2`` the moving variance around it; so both
    follow the tables as they grow, and no gradient trains them. The first behaviours are shared out
    at random.

    Args:
        num_prototypes: K.
        dim: D.
        momentum: weight of the newest batch.
    """

    def __init__(self, num_prototypes: int, dim: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("counts_K", torch.zeros(num_prototypes))
        self.register_buffer("sums_KD", torch.zeros(num_prototypes, dim))
        self.register_buffer("square", torch.zeros(()))

    @property
    def vectors_KD(self) -> Tensor:
        """The prototypes, zeros before any behaviour."""
        vectors_KD: Tensor = self.sums_KD / self.counts_K.clamp(min=_TINY).unsqueeze(1)
        return vectors_KD

    @property
    def variance(self) -> Tensor:
        """Mean squared element of a behaviour's distance from its prototype, a scalar."""
        explained_K = self.sums_KD.square().sum(1) / self.counts_K.clamp(min=_TINY)
        num_elements = self.counts_K.sum() * self.sums_KD.shape[1]
        unexplained: Tensor = (self.square - explained_K.sum()) / num_elements.clamp(min=_TINY)
        return unexplained.clamp(min=_TINY)

    @torch.no_grad()
    def update(self, values_NTD: Tensor, mask_NT: Tensor, weights_N: Tensor) -> None:
        """Learns from the behaviours of warm users; a collective call of all ranks.

        In evaluation mode, which a frozen tower keeps, nothing changes.

        Args:
            values_NTD: their behaviours; ``N`` may be 0.
            mask_NT: real positions (bool).
            weights_N: weight of each row.
        """
        if not self.training:
            return
        with torch.autocast(values_NTD.device.type, enabled=False):
            self._update(values_NTD.flatten(0, 1), (weights_N.unsqueeze(1) * mask_NT).flatten())

    def _update(self, values_BD: Tensor, weights_B: Tensor) -> None:
        """Learns from behaviours and their weights."""
        values_BD, weights_B = values_BD.to(self.sums_KD.dtype), weights_B.to(self.sums_KD.dtype)
        weighted_BK = self._first_or_own_shares(values_BD) * weights_B.unsqueeze(1)
        squares = (values_BD.square().sum(1) * weighted_BK.sum(1)).sum()
        parts = [weighted_BK.sum(0), (weighted_BK.T @ values_BD).flatten(), squares.unsqueeze(0)]
        sums = sum_over_ranks(torch.cat(parts))
        counts_K, sums_KD = sums[: len(self.counts_K)], sums[len(self.counts_K) : -1]
        total = counts_K.sum()
        momentum = self.momentum * (total > 0)
        total = torch.where(total > 0, total, 1)
        self.counts_K.lerp_(counts_K / total, momentum)
        self.sums_KD.lerp_(sums_KD.view_as(self.sums_KD) / total, momentum)
        self.square.lerp_(sums[-1] / total, momentum)

    @torch.no_grad()
    def forward(self, values_NTD: Tensor, mask_NT: Tensor) -> Tensor:
        """Computes the share of each prototype among the behaviours of a row, [N, K].

        Args:
            values_NTD: behaviours.
            mask_NT: real positions (bool). A row without any has shares of 0.
        """
        with torch.autocast(values_NTD.device.type, enabled=False):
            shares_NTK = self._shares(values_NTD) * mask_NT.unsqueeze(2)
        shares_NK: Tensor = shares_NTK.sum(1) / mask_NT.sum(1).clamp(min=1).unsqueeze(1)
        return shares_NK

    def sequences(self, shares_NK: Tensor, lengths_N: Tensor, num_positions: int) -> Tensor:
        """Makes sequences of prototypes [N, T, D], each as often as its share says.

        The shares lie end to end on a line of length 1, and position ``t`` of ``L`` has the mean of
        the line from ``t / L`` to ``(t + 1) / L``. So nearly all positions are one prototype, their
        mean is exactly that of the shares, and a small change of a share is a small change of the
        sequence.

        Args:
            shares_NK: share of each prototype, with sum 1.
            lengths_N: L, behaviours of each row.
            num_positions: T; zeros stand behind a row's length.
        """
        ends_NK = shares_NK.cumsum(1)
        starts_NK = ends_NK - shares_NK
        step_N1 = 1 / lengths_N.to(shares_NK.dtype).unsqueeze(1)
        starts_NT = torch.arange(num_positions, device=shares_NK.device) * step_N1
        low_NTK = torch.maximum(starts_NK.unsqueeze(1), starts_NT.unsqueeze(2))
        high_NTK = torch.minimum(ends_NK.unsqueeze(1), (starts_NT + step_N1).unsqueeze(2))
        overlap_NTK = (high_NTK - low_NTK).clamp(min=0) / step_N1.unsqueeze(2)
        mask_NT = position_mask(lengths_N, num_positions)
        return (overlap_NTK @ self.vectors_KD.to(shares_NK.dtype)) * mask_NT.unsqueeze(2)

    def _first_or_own_shares(self, values_BD: Tensor) -> Tensor:
        """Random shares before any behaviour, then those of the prototypes [B, K]."""
        is_known, num_prototypes = self.counts_K.sum() > 0, len(self.counts_K)
        if values_BD.device.type == "cpu" and not torch.compiler.is_compiling():
            known = bool(is_known)
            return self._shares(values_BD) if known else _random_shares(values_BD, num_prototypes)
        # Elsewhere to ask whether there were behaviours would wait for the device.
        first_BK = _random_shares(values_BD, num_prototypes)
        return torch.where(is_known, self._shares(values_BD), first_BK)

    def _shares(self, values: Tensor) -> Tensor:
        """Responsibilities [..., K] for vectors [..., D]."""
        values = values.to(self.sums_KD.dtype)
        vectors_KD = self.vectors_KD
        # |v|^2 is the same for all prototypes.
        distances = vectors_KD.square().sum(1) - 2 * (values @ vectors_KD.T)
        return torch.softmax(-distances / (2 * self.variance), dim=-1)


class SequencePrototypes(nn.Module):
    """The prototypes of each behaviour sequence.

    Args:
        num_prototypes: K, of each.
        shapes: the sequences.
    """

    def __init__(self, num_prototypes: int, shapes: Mapping[str, SequenceShape]) -> None:
        super().__init__()
        self.num_prototypes, self.shapes = num_prototypes, dict(shapes)
        self.of_sequence = nn.ModuleList(
            BehaviourPrototypes(num_prototypes, shape.dim) for shape in shapes.values()
        )

    def update(self, behaviours: Sequence[Behaviours], weights_N: Tensor) -> None:
        """Learns from the behaviours of warm users; a collective call of all ranks.

        Args:
            behaviours: of each sequence, in order.
            weights_N: weight of each row.
        """
        for prototypes, sequence in zip(self._each, behaviours, strict=True):
            prototypes.update(*_masked(sequence), weights_N)

    def forward(self, behaviours: Sequence[Behaviours]) -> Tensor:
        """Computes the share of each prototype in each sequence, [N, S, K]."""
        pairs = zip(self._each, behaviours, strict=True)
        return torch.stack([prototypes(*_masked(found)) for prototypes, found in pairs], dim=1)

    def sequences(self, logits: Tensor, relative_NS: Tensor | None) -> dict[str, Behaviours]:
        """Makes virtual behaviours from shares of the prototypes.

        Args:
            logits: of the shares, those of all sequences side by side, [N, S * K].
            relative_NS: length of each sequence as a share of its T; None fills all T.

        Returns:
            Sequence -> vectors [N, T, D] and their number [N] (int64).
        """
        sizes = logits.shape[0], len(self.shapes), self.num_prototypes
        shares_NSK = torch.softmax(logits.view(sizes), dim=2)
        made = {}
        for index, (name, sequence) in enumerate(self.shapes.items()):
            max_length = sequence.max_length
            lengths_N = virtual_lengths(logits, max_length, index, relative_NS)
            make = self._each[index].sequences
            made[name] = make(shares_NSK[:, index], lengths_N, max_length), lengths_N
        return made

    @property
    def _each(self) -> list[BehaviourPrototypes]:
        return cast("list[BehaviourPrototypes]", list(self.of_sequence))


def _masked(sequence: Behaviours) -> Behaviours:
    """The vectors of a sequence, zeros on padding, and the mask of real positions [N, T]."""
    values_NTD, lengths_N = sequence
    mask_NT = position_mask(lengths_N, values_NTD.shape[1])
    return values_NTD.masked_fill(~mask_NT.unsqueeze(2), 0.0), mask_NT


def _random_shares(values_BD: Tensor, num_prototypes: int) -> Tensor:
    """Random weights [B, K], nearly all of each prototype's on a few behaviours.

    Sums over ranks of such weights are such weights again, so that all ranks begin alike.
    """
    num_behaviours = values_BD.shape[0]
    draws_BK = torch.rand(num_behaviours, num_prototypes, device=values_BD.device)
    return draws_BK.to(values_BD.dtype) ** max(num_behaviours, 1)

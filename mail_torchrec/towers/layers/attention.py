"""Attention over behaviours: pooling (Feng et al. 2021, Eqs. 1 and 2) and pairwise scores.

Shape letters: ``N`` or ``B`` rows, ``T`` positions, ``P`` the positions of
``layers/positions.py``, ``D`` elements of a vector, ``H`` hidden elements.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mail_torchrec.towers.layers.cpu_bfloat16 import in_row_buckets, multiplies_in_bfloat16
from mail_torchrec.towers.layers.positions import Positions, select_positions
from mail_torchrec.towers.layers.sequences import BehaviourSequence


def masked_softmax(scores_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Softmax over the True positions of each row, 0 elsewhere.

    A row without any is all 0, with gradient 0.

    Args:
        scores_NT: raw scores, finite where masked.
        mask_NT: True on the positions that take part (bool).
    """
    # The least finite number, not -inf: a row of -inf alone would be NaN, and so would its
    # gradient.
    least = torch.finfo(scores_NT.dtype).min
    return torch.softmax(scores_NT.masked_fill(~mask_NT, least), dim=1) * mask_NT


def weighted_sum(weights_NT: Tensor, values_NTD: Tensor) -> Tensor:
    """Sum over positions of weight times vector, [N, D]."""
    is_plain = values_NTD.device.type == "cpu" and weights_NT.dtype == values_NTD.dtype
    is_plain = is_plain and not torch.compiler.is_compiling()
    if is_plain or multiplies_in_bfloat16(values_NTD):
        # Memory is the limit on CPUs: the products of weights and vectors are not written to it.
        with torch.autocast("cpu", enabled=False):
            weights_N1T = weights_NT.to(values_NTD.dtype).unsqueeze(1)
            return torch.bmm(weights_N1T, values_NTD).squeeze(1)
    return (weights_NT.unsqueeze(2) * values_NTD).sum(1)


def pair_scores(
    g: nn.Sequential,
    sequence: BehaviourSequence,
    make_query: Callable[[Positions], Tensor],
    *,
    row_query_BD: Tensor | None = None,
) -> Tensor:
    """Scores ``g([q, e, q - e, q * e])`` of each query and behaviour, [B, T].

    The first layer of ``g`` is split, ``W [q, e, q - e, q * e] = (W1 + W3) q + (W2 - W3) e +
    W4 (q * e)``: the term of the behaviours is computed once a user, the term of queries that a
    row's behaviours have in common once a row, and the four vectors never stand side by side in
    memory.

    Args:
        g: dense layers that map 4 D elements to one.
        sequence: the behaviours.
        make_query: returns the queries [P, D] at given positions.
        row_query_BD: the queries where all behaviours of a row have the same.
    """
    first, *others = g
    W1_HD, W2_HD, W3_HD, W4_HD = first.weight.chunk(4, dim=1)
    positions = select_positions(sequence)
    behaviours_PD = positions.gather_users(sequence.users.real_BTD)
    query_PD = make_query(positions)
    hidden_PH = _behaviour_term(positions, sequence, behaviours_PD, W2_HD - W3_HD, first.bias)
    if row_query_BD is None:
        both = torch.cat([query_PD, query_PD * behaviours_PD], dim=-1)
        hidden_PH = _add_product(hidden_PH, both, torch.cat([W1_HD + W3_HD, W4_HD], dim=1))
    else:
        query_BH = functional.linear(row_query_BD, W1_HD + W3_HD)
        hidden_PH = hidden_PH + positions.gather_rows(query_BH)
        hidden_PH = _add_product(hidden_PH, query_PD * behaviours_PD, W4_HD)
    scores_P: Tensor = nn.Sequential(*others)(hidden_PH).squeeze(-1)
    # Products may be in lower precision, sums over positions are not.
    return positions.to_padded(scores_P.to(query_PD.dtype))


def _behaviour_term(
    positions: Positions,
    sequence: BehaviourSequence,
    behaviours_PD: Tensor,
    weight_HD: Tensor,
    bias_H: Tensor,
) -> Tensor:
    """The dense layer on the behaviours at their positions [P, H], computed once a user."""
    users = sequence.users
    if users is sequence:
        return functional.linear(behaviours_PD, weight_HD, bias_H)
    return positions.gather_users(functional.linear(users.real_BTD, weight_HD, bias_H))


def _add_product(sum_PH: Tensor, x_PD: Tensor, weight_HD: Tensor) -> Tensor:
    """``sum + x W^T`` in one pass over the largest tensors of the tower."""
    return torch.addmm(sum_PH.flatten(0, -2), x_PD.flatten(0, -2), weight_HD.T).view_as(sum_PH)


class AttentionPooling(nn.Module):
    """Attention pooling ``h = sum_i alpha_i x_i``, [N, T, D] -> [N, D].

    ``alpha = softmax(e)`` with ``e_i = z^T tanh(W x_i + b)`` (Feng et al. 2021, Eqs. 1 and 2).

    Args:
        dim: D.
        attention_dim: rows of ``W``.
    """

    def __init__(self, dim: int, attention_dim: int = 128) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, attention_dim)
        self.score = nn.Linear(attention_dim, 1, bias=False)

    def forward(self, values_NTD: Tensor, mask_NT: Tensor | None = None) -> Tensor:
        """Pools each row.

        Args:
            values_NTD: vectors, finite where masked.
            mask_NT: True on real positions; all of them by default. A row without any is pooled to
                zeros.
        """
        scores_NT = in_row_buckets(self._scores, values_NTD)
        weights_NT = (
            torch.softmax(scores_NT, dim=1)
            if mask_NT is None
            else masked_softmax(scores_NT, mask_NT)
        )
        return weighted_sum(weights_NT, values_NTD)

    def _scores(self, values_NTD: Tensor) -> Tensor:
        scores_NT: Tensor = self.score(torch.tanh(self.hidden(values_NTD))).squeeze(2)
        return scores_NT

"""Attention pooling of a row's vectors (Feng et al. 2021, Eqs. 1 and 2)."""

import torch
from torch import Tensor, nn


def masked_softmax(scores_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Softmax over the True positions of each row, 0 elsewhere; a row without any is all 0, with gradient 0."""
    # The least finite number, not -inf: a row of -inf alone would be NaN, and so would its gradient.
    least = torch.finfo(scores_NT.dtype).min
    return torch.softmax(scores_NT.masked_fill(~mask_NT, least), dim=1) * mask_NT


def weighted_sum(weights_NT: Tensor, values_NTD: Tensor) -> Tensor:
    """Sum over positions of weight times vector, [N, D]."""
    return (weights_NT.unsqueeze(2) * values_NTD).sum(1)


def pair_scores(g: nn.Module, queries_NTD: Tensor, values_NTD: Tensor) -> Tensor:
    """``g([q, e, q - e, q * e])`` of each query and vector, [N, T]; ``g`` maps the last axis to one element."""
    pairs = [queries_NTD, values_NTD, queries_NTD - values_NTD, queries_NTD * values_NTD]
    scores_NT: Tensor = g(torch.cat(pairs, dim=2)).squeeze(2)
    return scores_NT


class AttentionPooling(nn.Module):
    """``h = sum_i alpha_i x_i`` with ``alpha = softmax(e)`` and ``e_i = z^T tanh(W x_i + b)``, [N, T, D] -> [N, D].

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
            mask_NT: True on real positions; all of them by default. A row without any is pooled to zeros.
        """
        scores_NT = self.score(torch.tanh(self.hidden(values_NTD))).squeeze(2)
        weights_NT = torch.softmax(scores_NT, dim=1) if mask_NT is None else masked_softmax(scores_NT, mask_NT)
        return weighted_sum(weights_NT, values_NTD)

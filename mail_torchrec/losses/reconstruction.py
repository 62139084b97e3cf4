"""Reconstruction losses of decoded vectors (Feng et al. 2021, Eqs. 3 and 4) and of shares.

Shape letters: ``N`` rows, ``F`` vectors of a row, ``D`` elements of a vector, ``S`` sequences,
``K`` shares of a sequence.
"""

from typing import Literal

from torch import Tensor
from torch.nn.functional import log_softmax

Reduction = Literal["mean", "sum"]
"""Reduction over the elements of a row: their mean, or the paper's raw sum."""
_TINY = 1e-12


def reconstruction_loss(
    predicted_NFD: Tensor,
    target_NFD: Tensor,
    mask_NF: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Computes the squared error of each row [N] over its ``F`` vectors.

    Args:
        predicted_NFD: decoded vectors; ``N`` may be 0, and several predictions may lie on axes in
            front, [..., N, F, D].
        target_NFD: the vectors to reconstruct.
        mask_NF: vectors that count (bool). The mean is over those alone; a row without any has loss
            0.
        reduction: over the elements of a row.
    """
    squared_NFD = (predicted_NFD - target_NFD).square()
    if mask_NF is not None:
        squared_NFD = squared_NFD * mask_NF.unsqueeze(-1)
    total_N = squared_NFD.flatten(-2).sum(-1)
    if reduction == "sum":
        return total_N
    num_fields, num_dims = target_NFD.shape[-2:]
    if mask_NF is None:
        return total_N / (num_fields * num_dims)
    return total_N / (mask_NF.sum(-1).clamp(min=1) * num_dims)


def share_loss(logits_NSK: Tensor, shares_NSK: Tensor) -> Tensor:
    """Computes the Kullback-Leibler divergence of each row's shares, mean over sequences, [N].

    Args:
        logits_NSK: decoded logits of the shares; several predictions may lie on axes in front,
            [..., N, S, K].
        shares_NSK: the shares to reconstruct; a sequence without any, all 0, has loss 0.
    """
    log_ratio_NSK = shares_NSK.clamp(min=_TINY).log() - log_softmax(logits_NSK, dim=-1)
    return (shares_NSK * log_ratio_NSK).sum(-1).mean(-1)

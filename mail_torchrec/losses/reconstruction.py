"""Reconstruction loss of decoded vectors (Feng et al. 2021, Eqs. 3 and 4).

Shape letters: ``N`` rows, ``F`` vectors of a row, ``D`` elements of a vector.
"""

from typing import Literal

from torch import Tensor

Reduction = Literal["mean", "sum"]
"""Reduction over the elements of a row: their mean, or the paper's raw sum."""


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

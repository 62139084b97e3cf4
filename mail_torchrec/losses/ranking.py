"""Ranking loss (Feng et al. 2021, Eq. 13)."""

from torch import Tensor
from torch.nn import functional


def ranking_loss(logits_B: Tensor, labels_B: Tensor) -> Tensor:
    """Computes the binary cross-entropy of each row [B].

    Args:
        logits_B: logits of the probabilities.
        labels_B: labels from 0 to 1, of any type.
    """
    return functional.binary_cross_entropy_with_logits(
        logits_B, labels_B.to(logits_B.dtype), reduction="none"
    )

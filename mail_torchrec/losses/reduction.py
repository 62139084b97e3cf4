"""Reduction of row losses to a scalar."""

import torch
from torch import Tensor


def weighted_mean(losses_B: Tensor, weights_B: Tensor, total: Tensor) -> Tensor:
    """Computes this rank's share of a weighted mean over the rows of all ranks.

    The share is ``sum(losses * weights) / total``, a scalar; 0 where ``total`` is 0.

    Args:
        losses_B: one loss a row; ``B`` may be 0.
        weights_B: one weight a row.
        total: the sum of the weights of all ranks, []; 1 gives the plain sum.
    """
    tiny = torch.finfo(losses_B.dtype).tiny
    return (losses_B * weights_B).sum() / total.to(losses_B.dtype).clamp(min=tiny)

"""From row losses to one number."""

import torch
from torch import Tensor


def weighted_mean(losses_B: Tensor, weights_B: Tensor, total: Tensor) -> Tensor:
    """This rank's share of a weighted mean over the rows of all ranks: ``sum(losses * weights) / total``.

    Args:
        losses_B: one loss a row; ``B`` may be 0.
        weights_B: one weight a row.
        total: the sum of the weights of all ranks (a scalar; 1 gives the plain sum). Where it is 0
            the result is 0.
    """
    tiny = torch.finfo(losses_B.dtype).tiny
    return (losses_B * weights_B).sum() / total.to(losses_B.dtype).clamp(min=tiny)

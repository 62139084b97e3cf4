"""Alignment of the two codes row by row, as in MAIL's released code; the paper's alignment is ``losses/mmd.py``."""

from torch import Tensor

from mail_torchrec.losses.reconstruction import Reduction


def paired_mse(P_NH: Tensor, Q_NH: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Squared distance of each row's two codes [N], its mean or sum over the ``H`` elements; ``N`` may be 0."""
    squared_NH = (P_NH - Q_NH).square()
    return squared_NH.mean(1) if reduction == "mean" else squared_NH.sum(1)

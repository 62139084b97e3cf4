"""Row-by-row alignment of two codes, as in MAIL's released code.

The paper's alignment is ``losses/mmd.py``. Shape letters: ``N`` rows, ``H`` elements of a code.
"""

from torch import Tensor

from mail_torchrec.losses.reconstruction import Reduction


def paired_mse(P_NH: Tensor, Q_NH: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Computes the squared distance of each row's two codes [N].

    Args:
        P_NH: codes; ``N`` may be 0.
        Q_NH: as many codes of the other kind.
        reduction: mean or sum over the ``H`` elements.
    """
    squared_NH = (P_NH - Q_NH).square()
    return squared_NH.mean(1) if reduction == "mean" else squared_NH.sum(1)

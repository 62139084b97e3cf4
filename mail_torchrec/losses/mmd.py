"""Maximum mean discrepancy of two sets of codes (Feng et al. 2021, Eqs. 5 and 6).

Shape letters: ``N`` rows of this rank, ``M`` rows of all ranks, ``D`` elements of a code.
"""

import torch
from torch import Tensor


def mmd(
    P_ND: Tensor,
    Q_ND: Tensor,
    sigma: float,
    all_P_MD: Tensor | None = None,
    all_Q_MD: Tensor | None = None,
    weights_N: Tensor | None = None,
    all_weights_M: Tensor | None = None,
) -> Tensor:
    """Computes the squared MMD with a Gaussian kernel (Gretton et al., JMLR 2012; biased).

    All three means are over ``1 / n^2``. The paper prints ``1 / n`` on two of the three terms; only
    ``1 / n^2`` makes them the squared distance in its first line.

    With rows spread over ranks, ``all_P_MD`` and ``all_Q_MD`` are the rows of all ranks (own ones
    among them) and the result is this rank's share: its rows against all rows. **The shares add up
    to the whole, and the gradient of a share is the gradient of the whole with respect to this
    rank's rows**; ``all_P_MD`` and ``all_Q_MD`` get none, so a plain gather will do. This holds
    because each kernel term is symmetric: a pair is met once from each end, hence own rows against
    *constant* rows carry exactly half of the gradient.

    Args:
        P_ND: codes; ``N`` may be 0 or 1.
        Q_ND: as many codes of the other kind.
        sigma: bandwidth of the kernel ``exp(-|p - q|^2 / (2 sigma^2))``.
        all_P_MD: codes of all ranks; by default ``P_ND``.
        all_Q_MD: codes of the other kind of all ranks; by default ``Q_ND``.
        weights_N: weight of each pair of codes, as if it were repeated so often; 1 by default.
        all_weights_M: weights of all ranks; by default ``weights_N``.

    Returns:
        A scalar, computed in float32 at least; 0 without any row.
    """
    all_P_MD = (P_ND if all_P_MD is None else all_P_MD).detach()
    all_Q_MD = (Q_ND if all_Q_MD is None else all_Q_MD).detach()
    own_N = P_ND.new_ones(P_ND.shape[0]) if weights_N is None else weights_N
    if all_weights_M is None:
        has_weights = weights_N is not None
        all_weights_M = own_N if has_weights else all_P_MD.new_ones(all_P_MD.shape[0])
    with torch.autocast(P_ND.device.type, enabled=False):
        pairs = ((P_ND, all_P_MD), (Q_ND, all_Q_MD), (P_ND, all_Q_MD), (Q_ND, all_P_MD))
        PP, QQ, PQ, QP = (_kernel_sum(*pair, own_N, all_weights_M, sigma) for pair in pairs)
    total = all_weights_M.sum().to(PP.dtype)
    total = torch.where(total > 0, total, 1)
    share = torch.stack([PP, QQ, -PQ, -QP]).sum() / total**2
    return 2 * share - share.detach()  # the value once, the gradient twice: see above


def _kernel_sum(
    X_ND: Tensor, Y_MD: Tensor, weights_N: Tensor, weights_M: Tensor, sigma: float
) -> Tensor:
    """Sums ``w_i w_j k(x_i, y_j)`` over ``i`` and ``j`` by one matrix product."""
    dtype = torch.promote_types(X_ND.dtype, torch.float32)
    X_ND, Y_MD = X_ND.to(dtype), Y_MD.to(dtype)
    center_1D = Y_MD.sum(0, keepdim=True) / max(Y_MD.shape[0], 1)
    # A common shift changes no distance, but keeps |x|^2 + |y|^2 - 2 x.y from cancelling when codes
    # lie far from 0.
    X_ND, Y_MD = X_ND - center_1D, Y_MD - center_1D
    squared_NM = X_ND.square().sum(1, keepdim=True) + Y_MD.square().sum(1) - 2 * X_ND @ Y_MD.T
    # Rounding makes some distances negative.
    kernel_NM = torch.exp(squared_NM.clamp(min=0) / (-2 * sigma**2))
    return weights_N.to(dtype) @ (kernel_NM @ weights_M.to(dtype))

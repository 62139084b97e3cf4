"""Maximum mean discrepancy of two sets of codes (Feng et al. 2021, Eqs. 5 and 6)."""

import torch
from torch import Tensor


def mmd(
    P_ND: Tensor,
    Q_ND: Tensor,
    sigma: float,
    all_P: Tensor | None = None,
    all_Q: Tensor | None = None,
    weights_N: Tensor | None = None,
    all_weights: Tensor | None = None,
) -> Tensor:
    """Squared MMD with a Gaussian kernel: the biased V-statistic, all three means over ``1 / n^2``.

    The paper prints ``1 / n`` on two of the three terms; only ``1 / n^2`` makes them the squared
    distance in its first line.

    With rows spread over ranks, ``all_P`` and ``all_Q`` are the rows of all ranks (own ones among
    them) and the result is this rank's share: its rows against all rows. **The shares add up to the
    whole, and the gradient of a share is the gradient of the whole with respect to this rank's
    rows**; ``all_P`` and ``all_Q`` get none, so a plain gather will do. This holds because each
    kernel term is symmetric: a pair is met once from each end, hence own rows against *constant*
    rows carry exactly half of the gradient.

    Args:
        P_ND: codes; ``N`` may be 0 or 1.
        Q_ND: as many codes of the other kind.
        sigma: bandwidth of the kernel ``exp(-|p - q|^2 / (2 sigma^2))``.
        all_P: by default ``P_ND``.
        all_Q: by default ``Q_ND``.
        weights_N: how often each pair of codes counts, as if it stood there so many times; once by
            default.
        all_weights: by default ``weights_N``.

    Returns:
        A scalar, computed in float32 at least; 0 without any row.
    """
    all_P, all_Q = (
        (P_ND if all_P is None else all_P).detach(),
        (Q_ND if all_Q is None else all_Q).detach(),
    )
    own = P_ND.new_ones(P_ND.shape[0]) if weights_N is None else weights_N
    every = (
        (own if weights_N is not None else all_P.new_ones(all_P.shape[0]))
        if all_weights is None
        else all_weights
    )
    with torch.autocast(P_ND.device.type, enabled=False):
        sums = [
            _kernel_sum(P_ND, all_P, own, every, sigma),
            _kernel_sum(Q_ND, all_Q, own, every, sigma),
            -_kernel_sum(P_ND, all_Q, own, every, sigma),
            -_kernel_sum(Q_ND, all_P, own, every, sigma),
        ]
    share = torch.stack(sums).sum() / every.sum().clamp(min=1).to(sums[0].dtype) ** 2
    return 2 * share - share.detach()  # the value once, the gradient twice: see above


def _kernel_sum(
    X_ND: Tensor, Y_MD: Tensor, weights_N: Tensor, weights_M: Tensor, sigma: float
) -> Tensor:
    """Sum over ``i`` and ``j`` of ``w_i w_j k(x_i, y_j)``, by one matrix product."""
    dtype = torch.promote_types(X_ND.dtype, torch.float32)
    X_ND, Y_MD = X_ND.to(dtype), Y_MD.to(dtype)
    center_1D = Y_MD.sum(0, keepdim=True) / max(Y_MD.shape[0], 1)
    # Moving all points alike changes no distance, but keeps |x|^2 + |y|^2 - 2 x.y from cancelling
    # when codes lie far from 0.
    X_ND, Y_MD = X_ND - center_1D, Y_MD - center_1D
    squared_NM = X_ND.square().sum(1, keepdim=True) + Y_MD.square().sum(1) - 2 * X_ND @ Y_MD.T
    kernel_NM = torch.exp(
        squared_NM.clamp(min=0) / (-2 * sigma**2)
    )  # rounding makes some distances negative
    return weights_N.to(dtype) @ (kernel_NM @ weights_M.to(dtype))

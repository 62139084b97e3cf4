"""Maximum mean discrepancy of two sets of codes (Feng et al. 2021, Eqs. 5 and 6).

Shape letters: ``N`` rows of this rank, ``M`` rows of all ranks, ``D`` elements of a code; ``I`` the
codes of both kinds of this rank, ``J`` those of all ranks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

GPU_BLOCK = 2**25
"""Elements of a block of the kernel matrix on a GPU: large enough for all of its units."""
_CPU_BLOCK = 2**18  # what a core's cache holds
_CPU_ROWS = 64  # codes are filled up to a multiple of this in bfloat16


def mmd(
    P_ND: Tensor,
    Q_ND: Tensor,
    sigma: float,
    all_P_MD: Tensor | None = None,
    all_Q_MD: Tensor | None = None,
    weights_N: Tensor | None = None,
    all_weights_M: Tensor | None = None,
    *,
    blocked: bool | None = None,
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

    In float32 on a CPU the four kernel matrices are made whole. On a GPU, and under autocast, value
    and gradient are computed together, block by block of one matrix, and none is kept. Autocast
    rounds the codes to bfloat16, and sums in float32.

    Args:
        P_ND: codes; ``N`` may be 0 or 1.
        Q_ND: as many codes of the other kind.
        sigma: bandwidth of the kernel ``exp(-|p - q|^2 / (2 sigma^2))``.
        all_P_MD: codes of all ranks; by default ``P_ND``.
        all_Q_MD: codes of the other kind of all ranks; by default ``Q_ND``.
        weights_N: weight of each pair of codes, as if it were repeated so often; 1 by default.
        all_weights_M: weights of all ranks; by default ``weights_N``.
        blocked: whether to go block by block; by default on a GPU and under autocast.

    Returns:
        A scalar, computed in float32 at least; 0 without any row.
    """
    all_P_MD = (P_ND if all_P_MD is None else all_P_MD).detach()
    all_Q_MD = (Q_ND if all_Q_MD is None else all_Q_MD).detach()
    own_N = P_ND.new_ones(P_ND.shape[0]) if weights_N is None else weights_N
    if all_weights_M is None:
        has_weights = weights_N is not None
        all_weights_M = own_N if has_weights else all_P_MD.new_ones(all_P_MD.shape[0])
    device, lower = P_ND.device.type, torch.is_autocast_enabled(P_ND.device.type)
    if blocked or (blocked is None and (device != "cpu" or lower)):
        with torch.autocast(device, enabled=False):
            return _blocked(P_ND, Q_ND, all_P_MD, all_Q_MD, own_N, all_weights_M, sigma, lower)
    with torch.autocast(device, enabled=False):
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


def _blocked(
    P_ND: Tensor,
    Q_ND: Tensor,
    all_P_MD: Tensor,
    all_Q_MD: Tensor,
    weights_N: Tensor,
    weights_M: Tensor,
    sigma: float,
    lower: bool,
) -> Tensor:
    """The MMD as ``sum t_i s_j k(x_i, z_j)``, with P's weights above 0 and Q's below in t and s."""
    dtype = torch.promote_types(P_ND.dtype, torch.float32)
    X_ID, Z_JD = torch.cat([P_ND, Q_ND]).to(dtype), torch.cat([all_P_MD, all_Q_MD]).to(dtype)
    weights_N, weights_M = weights_N.to(dtype), weights_M.to(dtype)
    signed_I = torch.cat([weights_N, -weights_N])
    signed_J = torch.cat([weights_M, -weights_M])
    total = weights_M.sum()
    signed_I = signed_I / torch.where(total > 0, total, 1) ** 2
    center_1D = Z_JD.sum(0, keepdim=True) / max(Z_JD.shape[0], 1)
    X_ID, Z_JD = X_ID - center_1D, Z_JD - center_1D
    if lower and X_ID.device.type == "cpu":
        X_ID, Z_JD, signed_I, signed_J = map(_filled_up, (X_ID, Z_JD, signed_I, signed_J))
    return cast(Tensor, _SignedKernelSum.apply(X_ID, Z_JD, signed_I, signed_J, sigma, lower))


def _filled_up(x_N: Tensor) -> Tensor:
    """Adds rows of zeros, of weight 0: oneDNN generates a kernel for each new number of rows."""
    sides = (0, 0) * (x_N.dim() - 1)
    return functional.pad(x_N, (*sides, 0, -len(x_N) % _CPU_ROWS))


class _SignedKernelSum(torch.autograd.Function):
    """Sums ``t_i s_j k(x_i, z_j)``; its gradient is twice that of constant ``z_j``."""

    @staticmethod
    def forward(
        ctx: Any,
        X_ID: Tensor,
        Z_JD: Tensor,
        signed_I: Tensor,
        signed_J: Tensor,
        sigma: float,
        lower: bool,
    ) -> Tensor:
        if lower:  # Norms of the rounded codes, so that distances are those of rounded codes too.
            X_ID, Z_JD = X_ID.bfloat16().to(X_ID.dtype), Z_JD.bfloat16().to(Z_JD.dtype)
        scale = 1 / sigma**2
        squares_J = Z_JD.square().sum(1) * (-0.5 * scale)
        # The products with the kernel: those that the gradient needs, and the sums of each row.
        factors_JD1 = torch.cat([Z_JD * signed_J[:, None], signed_J[:, None]], dim=1)
        elements = _CPU_BLOCK if X_ID.device.type == "cpu" else GPU_BLOCK
        blocks = X_ID.split(max(elements // max(len(Z_JD), 1), 1))
        sums = []
        with _fast_products(X_ID.device.type, lower=lower):
            for X_BD in blocks:
                logs_BJ = torch.addmm(squares_J, X_BD, Z_JD.T, alpha=scale)
                logs_BJ -= X_BD.square().sum(1, keepdim=True) * (0.5 * scale)
                # Rounding makes some distances negative.
                sums.append(logs_BJ.clamp_(max=0).exp_() @ factors_JD1)
        sums_ID1 = torch.cat(sums)
        gradient_ID = sums_ID1[:, :-1] - sums_ID1[:, -1:] * X_ID
        ctx.save_for_backward(gradient_ID * signed_I[:, None] * (2 * scale))
        return signed_I @ sums_ID1[:, -1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_ID,) = ctx.saved_tensors
        return gradient * gradient_ID, None, None, None, None, None


@contextmanager
def _fast_products(device: str, *, lower: bool) -> Iterator[None]:
    """Lets float32 products use the device's units for TF32 or bfloat16, of which none sums."""
    if not lower:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if device == "cpu" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

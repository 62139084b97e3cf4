"""Row counts rounded up to a few sizes, for bfloat16 products on CPUs.

oneDNN generates a kernel for each new shape of such a product, which takes longer than the product.
The number of users differs from step to step.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_ROWS = 32
"""Rows are filled up to a multiple of this."""


def is_bfloat16_on_cpu(x: Tensor) -> bool:
    """Returns whether products with a tensor go through a CPU's bfloat16 units: under autocast.

    Args:
        x: any tensor [...].
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16


def in_row_buckets(function: Callable[[Tensor], Tensor], x_NX: Tensor) -> Tensor:
    """Applies a function of rows to as many more rows of zeros as fill a bucket up, if that helps.

    Args:
        function: maps each row [N, ...] by itself.
        x_NX: rows of any trailing shape [N, ...].
    """
    num_rows = len(x_NX)
    if not is_bfloat16_on_cpu(x_NX) or num_rows % _ROWS == 0:
        return function(x_NX)
    sides = (0, 0) * (x_NX.dim() - 1)
    return function(functional.pad(x_NX, (*sides, 0, -num_rows % _ROWS)))[:num_rows]

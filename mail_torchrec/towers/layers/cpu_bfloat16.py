"""Products in bfloat16 on CPUs that have units for them, and few shapes of these products.

oneDNN generates a kernel for each new shape of a product, which takes longer than the product, and
the number of users differs from step to step. So rows are filled up to a few sizes.

Shape letters: ``N`` rows, ``X`` all other axes.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_ROWS = 64
"""Rows are filled up to a multiple of this."""


def has_bfloat16_units() -> bool:
    """Returns whether this CPU multiplies bfloat16 matrices faster than float32 matrices."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def multiplies_in_bfloat16(x: Tensor) -> bool:
    """Returns whether products go through a CPU's units for bfloat16: under autocast.

    Args:
        x: any tensor [...] on the device of the products.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    lower = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    return lower and has_bfloat16_units()


def in_row_buckets(function: Callable[[Tensor], Tensor], x_NX: Tensor) -> Tensor:
    """Applies a function to rows, on such a CPU among as many rows of zeros as fill a bucket up.

    Args:
        function: maps each row [N, ...] by itself.
        x_NX: rows of any trailing shape [N, ...].
    """
    if not multiplies_in_bfloat16(x_NX):
        return function(x_NX)  # an exported graph has no number of rows
    num_rows = x_NX.shape[0]
    sides = (0, 0) * (x_NX.dim() - 1)
    return function(functional.pad(x_NX, (*sides, 0, -num_rows % _ROWS)))[:num_rows]

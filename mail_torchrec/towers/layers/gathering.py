"""Gathering of rows whose gradients are summed in float32 on a GPU.

Shape letters: ``R`` rows, ``N`` gathered rows, ``X`` all other axes.
"""

import torch
from torch import Tensor


def gather(x_RX: Tensor, rows_N: Tensor) -> Tensor:
    """Gathers rows, [R, ...] -> [N, ...].

    Args:
        x_RX: values of any trailing shape.
        rows_N: indices of rows; one may come many times.
    """
    if x_RX.dtype is torch.bfloat16 and x_RX.device.type != "cpu":
        return _with_float32_sums(x_RX, rows_N)
    return x_RX.index_select(0, rows_N)


def _with_float32_sums(x_RX: Tensor, rows_N: Tensor) -> Tensor:
    # A GPU adds the gradients of a row by atomics, each of which would round to bfloat16.
    return x_RX.float().index_select(0, rows_N).to(x_RX.dtype)

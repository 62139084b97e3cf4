"""Dropout with cheap random draws on CPUs."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_BITS = 16


class Dropout(nn.Module):
    """Dropout as ``nn.Dropout``, in which one random draw on a CPU serves four elements.

    PyTorch's own draws one number an element there, from one thread.

    Args:
        p: share of elements that become 0; on a CPU rounded to a multiple of 2^-16.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drops elements; those that stay grow by ``1 / (1 - p)``.

        Args:
            x: any shape [...].
        """
        if not self.training or not self.p:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return functional.dropout(x, self.p)
        draws = (
            torch.empty(-(-x.numel() * _BITS // 64), dtype=torch.int64)
            .random_(-(2**63), None)
            .view(torch.int16)
        )
        kept = round((1 - self.p) * 2**_BITS)
        is_kept = (draws[: x.numel()] < kept - 2 ** (_BITS - 1)).view_as(x)
        return x * (is_kept.to(x.dtype) * (2**_BITS / kept))

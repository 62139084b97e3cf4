"""Residual encoder and decoder of the zero-shot tower (Feng et al. 2021, Eqs. 15 and 16).

Shape letters: ``N`` rows, ``I`` elements of the input, ``H`` elements of the code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mail_torchrec.towers.layers.cpu_bfloat16 import in_row_buckets
from mail_torchrec.towers.layers.dropout import Dropout


class _ResidualStack(nn.Module):
    """Dense layers that each read the previous output and the stack's input side by side.

    Dropout acts before all layers but the last.
    """

    def __init__(self, in_dim: int, layer_dims: Sequence[int], dropout: float) -> None:
        super().__init__()
        widths = [in_dim, *(dim + in_dim for dim in layer_dims[:-1])]
        self.layers = nn.ModuleList(
            nn.Linear(width, dim) for width, dim in zip(widths, layer_dims, strict=True)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x_NI: Tensor, *, drop: bool = True) -> Tensor:
        return in_row_buckets(lambda rows: self._stacked(rows, drop=drop), x_NI)

    def _stacked(self, x_NI: Tensor, *, drop: bool) -> Tensor:
        *hidden_layers, last_layer = self.layers
        inputs = x_NI
        for layer in hidden_layers:
            dropped = self.dropout(inputs) if drop else inputs
            inputs = torch.cat([functional.leaky_relu(layer(dropped)), x_NI], dim=1)
        out: Tensor = last_layer(inputs)
        return out


class ResidualEncoder(_ResidualStack):
    """Residual stack with a LeakyReLU behind the last layer too (Eq. 15), [N, I] -> [N, H].

    Args:
        in_dim: width of the input.
        layer_dims: hidden layers and code, (1024, 512, 512) in the paper.
        dropout: before all layers but the last.
    """

    def forward(self, x_NI: Tensor, *, drop: bool = True) -> Tensor:
        """Encodes each row; ``drop=False`` leaves the dropout out."""
        return functional.leaky_relu(super().forward(x_NI, drop=drop))


class ResidualDecoder(_ResidualStack):
    """Residual stack whose last layer is linear (Eq. 16), [N, H] -> [N, out_dim].

    Args:
        code_dim: width of the code.
        hidden_dims: hidden layers, (512, 1024) in the paper.
        out_dim: width of the reconstruction.
        dropout: before all layers but the last.
    """

    def __init__(
        self, code_dim: int, hidden_dims: Sequence[int], out_dim: int, dropout: float
    ) -> None:
        super().__init__(code_dim, [*hidden_dims, out_dim], dropout)

    def forward(self, code_NH: Tensor, *, drop: bool = True) -> Tensor:
        """Decodes each row; ``drop=False`` leaves the dropout out."""
        return super().forward(code_NH, drop=drop)

"""The residual autoencoder of the zero-shot tower (Feng et al. 2021, Figure 3, Eqs. 15 and 16)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mail_torchrec.towers.layers.dropout import Dropout


class _ResidualStack(nn.Module):
    """Dense layers; each sees the previous one's output beside the stack's input. Dropout before all layers but the last."""

    def __init__(self, in_dim: int, layer_dims: Sequence[int], dropout: float) -> None:
        super().__init__()
        widths = [in_dim, *(dim + in_dim for dim in layer_dims[:-1])]
        self.layers = nn.ModuleList(
            nn.Linear(width, dim) for width, dim in zip(widths, layer_dims, strict=True)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x_NI: Tensor, *, drop: bool = True) -> Tensor:
        *hidden_layers, last_layer = self.layers
        seen = x_NI
        for layer in hidden_layers:
            seen = torch.cat(
                [functional.leaky_relu(layer(self.dropout(seen) if drop else seen)), x_NI], dim=1
            )
        out: Tensor = last_layer(seen)
        return out


class ResidualEncoder(_ResidualStack):
    """Eq. 15, [N, in_dim] -> [N, layer_dims[-1]]: a residual stack with a LeakyReLU behind the last layer too.

    Args:
        in_dim: width of the input.
        layer_dims: hidden layers and code, (1024, 512, 512) in the paper.
        dropout: before all layers but the last.
    """

    def forward(self, x_NI: Tensor, *, drop: bool = True) -> Tensor:
        """Encodes each row, without dropout if told so."""
        return functional.leaky_relu(super().forward(x_NI, drop=drop))


class ResidualDecoder(_ResidualStack):
    """Eq. 16, [N, code_dim] -> [N, out_dim]: a residual stack whose last layer is linear.

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
        """Decodes each row, without dropout if told so."""
        return super().forward(code_NH, drop=drop)

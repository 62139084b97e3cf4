"""Basic deep ranking model (BaseDNN, Feng et al. 2021, Eqs. 11 to 13)."""

import torch
from pydantic import Field, PositiveInt
from torch import nn

from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import InputShapes, RankingInputs, RankingOutput
from mail_torchrec.towers.layers.mlp import last_dim, regularised_layers


class BaseDNNSettings(Settings):
    """Options of BaseDNN; defaults are the paper's."""

    hidden_dims: tuple[PositiveInt, ...] = (512, 256)
    """Widths of the hidden layers."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Dropout before each hidden layer."""


class BaseDNN(nn.Module):
    """Sum pooling of each group, then Dropout-Dense-BatchNorm-LeakyReLU layers and one logit.

    The input of the layers is ``z = [z^v of each sequence, z^a, z^c, z^t, numeric features]``;
    groups without fields are left out.

    Args:
        settings: widths and dropout.
        shapes: of the inputs.
    """

    Settings = BaseDNNSettings

    def __init__(self, settings: BaseDNNSettings, shapes: InputShapes) -> None:
        super().__init__()
        in_dim = sum(shapes.dims.values()) + shapes.num_numeric
        self.representation_dim = last_dim(in_dim, settings.hidden_dims)
        layers = regularised_layers(in_dim, settings.hidden_dims, settings.dropout)
        self.layers = nn.Sequential(*layers, nn.Linear(self.representation_dim, 1))

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        """Computes the logits [B] and the last hidden layer."""
        sums = [sequence.sum_BD for sequence in inputs.sequences.values()]
        sums += [
            group.sum(1)
            for group in (inputs.attributes_BAD, inputs.context_BCD, inputs.items_BID)
            if group.shape[1]
        ]
        z_BZ = torch.cat([*sums, inputs.numeric_BN], dim=1)
        representation_BR = self.layers[:-1](z_BZ)
        return RankingOutput(
            self.layers[-1](representation_BR).squeeze(1), representation_BR=representation_BR
        )

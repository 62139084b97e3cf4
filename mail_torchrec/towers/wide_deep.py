"""Wide & Deep (Cheng et al., DLRS 2016)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mail_torchrec.towers.base_dnn import BaseDNNSettings
from mail_torchrec.towers.inputs import InputShapes, RankingInputs, RankingOutput
from mail_torchrec.towers.layers.mlp import last_dim, regularised_layers


class WideDeepSettings(BaseDNNSettings):
    """Options of the deep part, which has BaseDNN's layers and defaults."""

    needs_first_order: ClassVar[bool] = True
    """Tables store a first-order weight for each id beside its vector."""


class Wide(nn.Module):
    """Linear part: one weight an id, which the tables store, and one weight a numeric feature.

    Crossed features are columns of the data; behaviours have no part in it, see
    :attr:`RankingInputs.first_order_B`.

    Args:
        num_numeric: numeric features.
    """

    def __init__(self, num_numeric: int) -> None:
        super().__init__()
        self.numeric = nn.Linear(num_numeric, 1, bias=False) if num_numeric else None

    def forward(self, inputs: RankingInputs) -> Tensor:
        """Computes the linear logits [B], without a bias: the deep part has one."""
        assert inputs.first_order_B is not None, "needs_first_order of the settings promises it"
        if self.numeric is None:
            return inputs.first_order_B
        return inputs.first_order_B + self.numeric(inputs.numeric_BN).squeeze(1)


class WideDeep(nn.Module):
    """Ranking tower ``logit = wide + deep``.

    The deep part reads all fields, the numeric features and the mean of each sequence.

    Args:
        settings: of the deep part.
        shapes: of the inputs.
    """

    Settings = WideDeepSettings

    def __init__(self, settings: WideDeepSettings, shapes: InputShapes) -> None:
        super().__init__()
        in_dim = shapes.features_dim + sum(shape.dim for shape in shapes.sequences.values())
        self.wide = Wide(shapes.num_numeric)
        self.deep = nn.Sequential(
            *regularised_layers(in_dim, settings.hidden_dims, settings.dropout)
        )
        self.representation_dim = last_dim(in_dim, settings.hidden_dims)
        self.logit = nn.Linear(self.representation_dim, 1)

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        """Computes the logits [B] and the last hidden layer of the deep part."""
        means = [sequence.mean_BD for sequence in inputs.sequences.values()]
        representation_BR = self.deep(torch.cat([*inputs.features, *means], dim=1))
        return RankingOutput(
            self.wide(inputs) + self.logit(representation_BR).squeeze(1),
            representation_BR=representation_BR,
        )

"""Ranking towers as a user would write them, named by import path in tests."""

from typing import Any

import torch
from torch import Tensor, nn

from mail_torchrec.towers.inputs import InputShapes, RankingInputs, RankingOutput


class MeanTower(nn.Module):
    """One linear layer over means; returns bare logits and has no settings."""

    def __init__(self, options: dict[str, Any], shapes: InputShapes) -> None:
        super().__init__()
        self.linear = nn.Linear(
            shapes.attribute_dim
            + shapes.item_dim
            + shapes.num_numeric
            + sum(s.dim for s in shapes.sequences.values()),
            1,
        )

    def means(self, inputs: RankingInputs) -> Tensor:
        parts = [inputs.attributes_BAD.mean(1), inputs.items_BID.mean(1), inputs.numeric_BN]
        parts += [sequence.values_BTD.sum(1) for sequence in inputs.sequences.values()]
        return torch.cat(parts, dim=1)

    def forward(self, inputs: RankingInputs) -> Any:
        return self.linear(self.means(inputs)).squeeze(1)


class RepresentingTower(MeanTower):
    """The same with what the multi-task head needs."""

    def __init__(self, options: dict[str, Any], shapes: InputShapes) -> None:
        super().__init__(options, shapes)
        self.representation_dim = self.linear.in_features

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        means_BR = self.means(inputs)
        return RankingOutput(self.linear(means_BR).squeeze(1), representation_BR=means_BR)

"""Ranking towers as a user would write them, named by import path in tests.

Shape letters as in ``towers/inputs.py``.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mail_torchrec.towers.inputs import InputShapes, RankingInputs, RankingOutput
from mail_torchrec.towers.outputs import vector_specs
from mail_torchrec.utils.output_spec import OutputSpec


class MeanTower(nn.Module):
    """One linear layer over means, which returns bare logits and has no settings."""

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
        """Concatenates means of all groups, [B, R]."""
        parts = [inputs.attributes_BAD.mean(1), inputs.items_BID.mean(1), inputs.numeric_BN]
        parts += [sequence.values_BTD.sum(1) for sequence in inputs.sequences.values()]
        return torch.cat(parts, dim=1)

    def forward(self, inputs: RankingInputs) -> Any:
        """Computes the logits [B]."""
        return self.linear(self.means(inputs)).squeeze(1)


class RepresentingTower(MeanTower):
    """The same with the representation that the multi-task head needs."""

    def __init__(self, options: dict[str, Any], shapes: InputShapes) -> None:
        super().__init__(options, shapes)
        self.representation_dim = self.linear.in_features

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        """Computes the logits [B] and returns the means as representation."""
        means_BR = self.means(inputs)
        return RankingOutput(self.linear(means_BR).squeeze(1), representation_BR=means_BR)


class VectorTower(nn.Module):
    """Two linear maps of a sequence's sum and its target, whose dot product is the logit.

    Args:
        options: ``declared_dim``, the declared width; 5, the true one, by default. With None the
            tower declares 5 and returns no vectors.
        shapes: of the inputs.
    """

    def __init__(self, options: dict[str, Any], shapes: InputShapes) -> None:
        super().__init__()
        [(self.column, shape)] = shapes.sequences.items()
        self.declared_dim = options.get("declared_dim", 5)
        self.user, self.item = nn.Linear(shape.dim, 5), nn.Linear(shape.dim, 5)

    def output_specs(self) -> list[OutputSpec]:
        """Declares the two vectors."""
        return vector_specs(self.column, self.declared_dim or 5)

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        """Computes the logits [B] and both vectors."""
        sequence = inputs.sequences[self.column]
        user_UD = self.user(sequence.users.real_BTD.sum(1))
        item_BD = self.item(sequence.target_BD)
        logits_B = (sequence.to_rows(user_UD) * item_BD).sum(1)
        vectors = {self.column: (user_UD, item_BD)} if self.declared_dim else {}
        return RankingOutput(logits_B, vectors=vectors)

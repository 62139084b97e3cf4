"""Embedding logistic regression (EmbLR): one weight an id."""

import torch
from torch import Tensor, nn

from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import InputShapes, RankingInputs, RankingOutput


class EmbLRSettings(Settings):
    """Options of EmbLR: none, its weights are tables of dimension 1."""


class EmbLR(nn.Module):
    """Ranking tower ``logit = bias + sum of the ids' weights + w . numeric``.

    Every real behaviour counts as an id.

    Args:
        settings: none.
        shapes: of the inputs; every dimension must be 1.

    Raises:
        ValueError: a dimension is not 1.
    """

    Settings = EmbLRSettings

    def __init__(self, settings: EmbLRSettings, shapes: InputShapes) -> None:
        super().__init__()
        _check_dims(shapes)
        self.bias = nn.Parameter(torch.zeros(1))
        self.numeric = nn.Linear(shapes.num_numeric, 1, bias=False) if shapes.num_numeric else None

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        """Computes the logits [B]."""
        sums = [
            group.sum((1, 2))
            for group in (inputs.attributes_BAD, inputs.context_BCD, inputs.items_BID)
        ]
        sums += [sequence.sum_BD.sum(1) for sequence in inputs.sequences.values()]
        logits_B: Tensor = self.bias + torch.stack(sums).sum(0)
        if self.numeric is not None:
            logits_B = logits_B + self.numeric(inputs.numeric_BN).squeeze(1)
        return RankingOutput(logits_B)


def _check_dims(shapes: InputShapes) -> None:
    if set(shapes.dims.values()) - {1}:
        raise ValueError(
            f"tower 'emblr' needs tables of dimension 1, received {shapes.dims}; set schema.dim=1 "
            "(and no other dim in schema.tables)"
        )

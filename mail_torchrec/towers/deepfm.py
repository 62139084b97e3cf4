"""DeepFM (Guo et al., IJCAI 2017)."""

import torch
from torch import Tensor, nn

from mail_torchrec.towers.inputs import InputShapes, RankingInputs, RankingOutput
from mail_torchrec.towers.layers.mlp import last_dim, regularised_layers
from mail_torchrec.towers.wide_deep import Wide, WideDeepSettings


def second_order(fields_BFD: Tensor) -> Tensor:
    """Sums the dot products of all pairs of fields, [B].

    By ``((sum x)^2 - sum x^2) / 2``, which is linear in the number of fields (factorization
    machines, Rendle, ICDM 2010).

    Args:
        fields_BFD: ``F`` field vectors of each row.
    """
    return ((fields_BFD.sum(1) ** 2 - (fields_BFD**2).sum(1)) / 2).sum(1)


class DeepFM(nn.Module):
    """Ranking tower ``logit = first order + FM second order + deep``.

    The last two parts read the same field vectors.

    A sequence is one field, the mean of its behaviours, as a list column is; numeric features have
    no vector and enter the first order and the deep part.

    Args:
        settings: of the deep part; BaseDNN's layers and defaults.
        shapes: of the inputs; all fields must have one dimension.

    Raises:
        ValueError: the dimensions differ.
    """

    Settings = WideDeepSettings

    def __init__(self, settings: WideDeepSettings, shapes: InputShapes) -> None:
        super().__init__()
        _check_dims(shapes)
        in_dim = shapes.features_dim + sum(shape.dim for shape in shapes.sequences.values())
        self.first_order = Wide(shapes.num_numeric)
        self.deep = nn.Sequential(
            *regularised_layers(in_dim, settings.hidden_dims, settings.dropout)
        )
        self.representation_dim = last_dim(in_dim, settings.hidden_dims)
        self.logit = nn.Linear(self.representation_dim, 1)

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        """Computes the logits [B] and the last hidden layer of the deep part."""
        groups = [
            group
            for group in (inputs.attributes_BAD, inputs.items_BID, inputs.context_BCD)
            if group.shape[1]
        ]
        groups += [sequence.mean_BD.unsqueeze(1) for sequence in inputs.sequences.values()]
        fields_BFD = torch.cat(groups, dim=1)
        representation_BR = self.deep(torch.cat([fields_BFD.flatten(1), inputs.numeric_BN], dim=1))
        logits_B = self.first_order(inputs) + second_order(fields_BFD)
        logits_B = logits_B + self.logit(representation_BR).squeeze(1)
        return RankingOutput(logits_B, representation_BR=representation_BR)


def _check_dims(shapes: InputShapes) -> None:
    if len(set(shapes.dims.values())) > 1:
        raise ValueError(
            "tower 'deepfm' multiplies field vectors with each other and needs one dimension for "
            f"all, received {shapes.dims}; "
            "set schema.dim (and no other dim in schema.tables, nor schema.actions=concat), or "
            "choose wide_deep"
        )

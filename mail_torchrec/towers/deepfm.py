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
    no vector and enter the first order and the deep part. Where the dimensions of groups and
    sequences differ, a dense layer projects the narrower ones to the widest.

    Args:
        settings: of the deep part; BaseDNN's layers and defaults.
        shapes: of the inputs.
    """

    Settings = WideDeepSettings

    def __init__(self, settings: WideDeepSettings, shapes: InputShapes) -> None:
        super().__init__()
        dims = [shapes.dims[name] for name in _order(shapes)]
        num_fields = shapes.num_attributes + shapes.num_context + shapes.num_items
        in_dim = (num_fields + len(shapes.sequences)) * max(dims) + shapes.num_numeric
        self.first_order = Wide(shapes.num_numeric)
        self.deep = nn.Sequential(
            *regularised_layers(in_dim, settings.hidden_dims, settings.dropout)
        )
        self.representation_dim = last_dim(in_dim, settings.hidden_dims)
        self.logit = nn.Linear(self.representation_dim, 1)
        self.projections = nn.ModuleList(
            nn.Identity() if dim == max(dims) else nn.Linear(dim, max(dims), bias=False)
            for dim in dims
        )

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        """Computes the logits [B] and the last hidden layer of the deep part."""
        groups = [
            group
            for group in (inputs.attributes_BAD, inputs.items_BID, inputs.context_BCD)
            if group.shape[1]
        ]
        groups += [sequence.mean_BD.unsqueeze(1) for sequence in inputs.sequences.values()]
        pairs = zip(self.projections, groups, strict=True)
        fields_BFD = torch.cat([project(group) for project, group in pairs], dim=1)
        representation_BR = self.deep(torch.cat([fields_BFD.flatten(1), inputs.numeric_BN], dim=1))
        logits_B = self.first_order(inputs) + second_order(fields_BFD)
        logits_B = logits_B + self.logit(representation_BR).squeeze(1)
        return RankingOutput(logits_B, representation_BR=representation_BR)


def _order(shapes: InputShapes) -> list[str]:
    """Names of the groups and sequences in the order of the fields."""
    groups = ("attributes", "items", "context")
    fields = [name for name in groups if name in shapes.dims]
    return fields + [name for name in shapes.dims if name not in groups]

"""Deep interest network (DIN, Zhou et al., KDD 2018).

Shape letters as in ``towers/inputs.py``.
"""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import InputShapes, RankingInputs, RankingOutput
from mail_torchrec.towers.layers.attention import masked_softmax, pair_scores, weighted_sum
from mail_torchrec.towers.layers.mlp import Dice, LastDimPReLU, dense_layers, last_dim
from mail_torchrec.towers.layers.sequences import BehaviourSequence


class DINSettings(Settings):
    """Options of DIN; defaults are the paper's."""

    hidden_dims: tuple[PositiveInt, ...] = (200, 80)
    """Hidden layers of the MLP."""
    activation: Literal["dice", "prelu"] = "dice"
    """Activation of the MLP's hidden layers."""
    attention_dims: tuple[PositiveInt, ...] = (36,)
    """Hidden layers of the activation unit, with PReLU, since the batch statistics of Dice would
    count padding."""
    normalise: Literal["none", "softmax"] = "none"
    """Normalisation of the attention weights: none (paper), so that their sum tells how strong the
    interest is, or softmax, as in its released code."""


class ActivationUnitPooling(nn.Module):
    """Sums behaviours weighted by a local activation unit, ``sum_t a(e_t, v) e_t`` (Eq. 3).

    Args:
        settings: of the activation unit ``a``.
        dim: D.
    """

    def __init__(self, settings: DINSettings, dim: int) -> None:
        super().__init__()
        layers = dense_layers(4 * dim, settings.attention_dims, LastDimPReLU)
        last = nn.Linear(last_dim(4 * dim, settings.attention_dims), 1)
        self.score = nn.Sequential(*layers, last)
        self.is_softmax = settings.normalise == "softmax"

    def forward(self, sequence: BehaviourSequence) -> Tensor:
        """Pools behaviours to [B, D] by the target item; zeros where a row has none."""
        target_BD = sequence.target_BD
        scores_BT = pair_scores(
            self.score,
            sequence,
            lambda positions: positions.gather_rows(target_BD),
            row_query_BD=target_BD,
        )
        if self.is_softmax:
            scores_BT = masked_softmax(scores_BT, sequence.mask_BT)
        # Where the weights are raw, padding needs no mask: its vectors are zeros.
        return weighted_sum(scores_BT, sequence.real_BTD)


class DIN(nn.Module):
    """MLP over all fields (the target item among them), numeric features and pooled behaviours.

    The paper's mini-batch aware regularisation of the tables is left out.

    Args:
        settings: widths.
        shapes: of the inputs.
    """

    Settings = DINSettings

    def __init__(self, settings: DINSettings, shapes: InputShapes) -> None:
        super().__init__()
        # A list, not a dict by name: a sequence may bear the name of a method of nn.ModuleDict.
        self.pooling = nn.ModuleList(
            ActivationUnitPooling(settings, shape.dim) for shape in shapes.sequences.values()
        )
        self.sequences = list(shapes.sequences)
        in_dim = shapes.features_dim + sum(shape.dim for shape in shapes.sequences.values())
        activation = Dice if settings.activation == "dice" else LastDimPReLU
        self.mlp = nn.Sequential(*dense_layers(in_dim, settings.hidden_dims, activation))
        self.representation_dim = last_dim(in_dim, settings.hidden_dims)
        self.logit = nn.Linear(self.representation_dim, 1)

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        """Computes the logits [B] and the last hidden layer."""
        pooled = [
            pooling(inputs.sequences[name])
            for name, pooling in zip(self.sequences, self.pooling, strict=True)
        ]
        representation_BR = self.mlp(torch.cat([*inputs.features, *pooled], dim=1))
        return RankingOutput(
            self.logit(representation_BR).squeeze(1), representation_BR=representation_BR
        )

"""Deep interest network (Zhou et al., KDD 2018)."""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import BehaviourSequence, InputShapes, RankingInputs, RankingOutput
from mail_torchrec.towers.layers.attention import masked_softmax, pair_scores, weighted_sum
from mail_torchrec.towers.layers.mlp import Dice, LastDimPReLU, dense_layers, last_dim


class DINSettings(Settings):
    """Defaults are the paper's."""

    hidden_dims: tuple[PositiveInt, ...] = (200, 80)
    """Hidden layers of the MLP."""
    activation: Literal["dice", "prelu"] = "dice"
    """Of the MLP."""
    attention_dims: tuple[PositiveInt, ...] = (36,)
    """Hidden layers of the activation unit, with PReLU: Dice would take statistics over padding."""
    normalise: Literal["none", "softmax"] = "none"
    """none: raw weights, whose sum says how strong the interest is (the paper); softmax: they sum
    to 1, as in its released code."""


class Interest(nn.Module):
    """Behaviours weighted by the target item and summed: ``sum_t a(e_t, v) e_t``, [B, d].

    Args:
        settings: of the activation unit ``a``.
        dim: d.
    """

    def __init__(self, settings: DINSettings, dim: int) -> None:
        super().__init__()
        layers = dense_layers(4 * dim, settings.attention_dims, LastDimPReLU)
        self.score = nn.Sequential(
            *layers, nn.Linear(last_dim(4 * dim, settings.attention_dims), 1)
        )
        self.is_softmax = settings.normalise == "softmax"

    def forward(self, sequence: BehaviourSequence) -> Tensor:
        """Zeros where a row has no behaviours."""
        behaviours_BTD, mask_BT = sequence.real_BTD, sequence.mask_BT
        target_BD = sequence.target_BD
        scores_BT = pair_scores(
            self.score, sequence, lambda positions: positions.of_rows(target_BD), of_rows=target_BD
        )
        # Where the weights are raw, padding needs no mask: its vectors are zeros.
        return weighted_sum(
            masked_softmax(scores_BT, mask_BT) if self.is_softmax else scores_BT, behaviours_BTD
        )


class DIN(nn.Module):
    """An MLP over all fields (the target item among them), numeric features and the interest found in each sequence.

    The paper's mini-batch aware regularisation of the tables is left out.

    Args:
        settings: widths.
        shapes: of the inputs.
    """

    Settings = DINSettings

    def __init__(self, settings: DINSettings, shapes: InputShapes) -> None:
        super().__init__()
        # A list, not a dict by name: a sequence may bear the name of a method of nn.ModuleDict.
        self.interests = nn.ModuleList(
            Interest(settings, shape.dim) for shape in shapes.sequences.values()
        )
        self.sequences = list(shapes.sequences)
        in_dim = shapes.features_dim + sum(shape.dim for shape in shapes.sequences.values())
        activation = Dice if settings.activation == "dice" else LastDimPReLU
        self.mlp = nn.Sequential(*dense_layers(in_dim, settings.hidden_dims, activation))
        self.representation_dim = last_dim(in_dim, settings.hidden_dims)
        self.logit = nn.Linear(self.representation_dim, 1)

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        """The logits [B] and the last hidden layer."""
        found = [
            interest(inputs.sequences[name])
            for name, interest in zip(self.sequences, self.interests, strict=True)
        ]
        representation_BR = self.mlp(torch.cat([*inputs.features, *found], dim=1))
        return RankingOutput(
            self.logit(representation_BR).squeeze(1), representation_BR=representation_BR
        )

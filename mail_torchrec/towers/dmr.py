"""Deep match to rank (DMR, Lyu et al., AAAI 2020).

Shape letters as in ``towers/inputs.py``; ``S`` sequences, ``H`` hidden elements.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from mail_torchrec.losses.match import sampled_softmax
from mail_torchrec.settings import Settings
from mail_torchrec.towers.dmr_networks import ItemToItemNetwork, UserToItemNetwork
from mail_torchrec.towers.inputs import InputShapes, RankingInputs, RankingOutput
from mail_torchrec.towers.layers.mlp import LastDimPReLU, dense_layers, last_dim
from mail_torchrec.towers.layers.sequences import BehaviourSequence, DedupSequence
from mail_torchrec.towers.outputs import vector_specs
from mail_torchrec.utils.output_spec import OutputSpec

MIN_BEHAVIOURS = 3
"""Rows with fewer behaviours are left out of the match loss."""


class DMRSettings(Settings):
    """Options of DMR; defaults are the paper's."""

    hidden_dims: tuple[PositiveInt, ...] = (512, 256, 128)
    """Hidden layers of the MLP."""
    attention_dims: tuple[PositiveInt, ...] = (80, 40)
    """Hidden layers of the attention function g."""
    embedding_dim: PositiveInt = 8
    """Width of the position and action embeddings, in each of the two networks."""
    match_weight: float = Field(default=0.1, ge=0.0)
    """Weight of the auxiliary match loss; 0 leaves out the loss and the output-side item table
    V'."""
    num_negatives: PositiveInt = 2000
    """Sampled negatives of the match loss in each batch."""
    negatives: Literal["log_uniform", "unigram", "uniform"] = "log_uniform"
    """Distribution of the negatives: log_uniform over the items by falling frequency, unigram (the
    frequencies themselves) or uniform, which hashed item tables need, as they have no
    frequencies."""

    @property
    def needs_match(self) -> bool:
        """True where batches have to hold the inputs of a match loss."""
        return self.match_weight > 0


class DMR(nn.Module):
    """Both networks for each sequence, and an MLP over fields, numeric features and their outputs.

    A sequence gives ``[sum v, target * sum v, r, item-to-item relevance, attended sum]`` with ``r =
    u_L . v'_target``; without V' the ordinary target vector stands in for ``v'_target``. The
    auxiliary loss ``match`` is the mean over (row, sequence) pairs with at least 3 real behaviours
    of the sampled softmax in which ``u_{L-1}`` predicts the newest.

    Args:
        settings: widths and the match loss.
        shapes: of the inputs.
    """

    Settings = DMRSettings

    def __init__(self, settings: DMRSettings, shapes: InputShapes) -> None:
        super().__init__()
        self.settings, self.has_match = settings, shapes.has_match
        self.sequences = dict(shapes.sequences)
        # Lists, not dicts by name: a sequence may bear the name of a method of nn.ModuleDict.
        widths = settings.attention_dims, settings.embedding_dim
        self.user_to_item = nn.ModuleList(
            UserToItemNetwork(shape, *widths) for shape in self.sequences.values()
        )
        self.item_to_item = nn.ModuleList(
            ItemToItemNetwork(shape, *widths) for shape in self.sequences.values()
        )
        in_dim = shapes.features_dim + sum(3 * shape.dim + 2 for shape in self.sequences.values())
        self.representation_dim = last_dim(in_dim, settings.hidden_dims)
        layers = dense_layers(in_dim, settings.hidden_dims, LastDimPReLU)
        logit = nn.Linear(self.representation_dim, 1)
        self.mlp = nn.Sequential(nn.BatchNorm1d(in_dim), *layers, logit)

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        """Computes the logits [B], the last hidden layer, vectors and, if on, the match loss."""
        features, match_losses, vectors = inputs.features, [], {}
        for index, name in enumerate(self.sequences):
            sequence = inputs.sequences[name]
            now_UD, before_UD = self.user_to_item[index](sequence.users)
            target_BD = self._target_vectors(sequence)
            features += self._sequence_features(index, sequence, now_UD, target_BD)
            vectors[name] = now_UD, target_BD
            if self.has_match and self.settings.needs_match:
                losses_U, counts_U = _match_loss(sequence.users, before_UD)
                match_losses.append((sequence.to_rows(losses_U), sequence.to_rows(counts_U)))
        representation_BR = self._representation(torch.cat(features, dim=1), inputs)
        logits_B = self.mlp[-1](representation_BR).squeeze(1)
        return RankingOutput(logits_B, self._auxiliary(match_losses), representation_BR, vectors)

    def output_specs(self) -> list[OutputSpec]:
        """Declares the user and item vectors of every sequence, whose product is ``r``."""
        return [
            spec
            for name, shape in self.sequences.items()
            for spec in vector_specs(name, shape.match_dim or shape.dim)
        ]

    def _sequence_features(
        self, index: int, sequence: BehaviourSequence, now_UD: Tensor, target_BD: Tensor
    ) -> list[Tensor]:
        """The MLP's inputs [B, width] of one sequence."""
        r_B1 = (sequence.to_rows(now_UD) * target_BD).sum(1, keepdim=True)
        relevance_B, attended_BD = self.item_to_item[index](sequence)
        sum_BD = sequence.sum_BD
        crossed_BD = sequence.target_BD * sum_BD
        return [sum_BD, crossed_BD, r_B1, relevance_B.unsqueeze(1), attended_BD]

    def _representation(self, features_BF: Tensor, inputs: RankingInputs) -> Tensor:
        """The last hidden layer [B, R]; ``F`` elements of all features."""
        norm, *layers = self.mlp[:-1]
        normed_BF = norm(features_BF)
        sequence = next(iter(inputs.sequences.values()), None)
        is_shared = isinstance(sequence, DedupSequence) and not torch.compiler.is_compiling()
        if not is_shared or not layers:
            return nn.Sequential(*layers)(normed_BF)
        first, *others = layers
        assert isinstance(sequence, DedupSequence) and isinstance(first, nn.Linear)
        num_attributes = inputs.attributes_BAD.shape[1:].numel()
        hidden_BH = _dense_once_a_user(first, normed_BF, num_attributes, sequence)
        return nn.Sequential(*others)(hidden_BH)

    def _target_vectors(self, sequence: BehaviourSequence) -> Tensor:
        """The targets' vectors ``v'_target`` [B, match_dim]."""
        match = sequence.match if self.has_match else None
        return sequence.target_BD if match is None else match.target_BD

    def _auxiliary(
        self, match_losses: list[tuple[Tensor, Tensor]]
    ) -> dict[str, tuple[Tensor, Tensor, float]]:
        """The match loss: the mean over all (row, sequence) pairs that count.

        A row's loss is the mean over its sequences that count, its weight their number.
        """
        if not match_losses:
            return {}
        losses_SB, weights_SB = (torch.stack(part) for part in zip(*match_losses, strict=True))
        weights_B = weights_SB.sum(0)
        losses_B = (losses_SB * weights_SB).sum(0) / weights_B.clamp(min=1)
        return {"match": (losses_B, weights_B, self.settings.match_weight)}


def _dense_once_a_user(
    layer: nn.Linear, features_BF: Tensor, num_attributes: int, sequence: DedupSequence
) -> Tensor:
    """Dense layer [B, H] whose term of the attributes is computed once a user.

    The attributes are the first features, and equal in all rows of a user.
    """
    # Split, not sliced: the gradients of two slices are two tensors of the whole's size.
    sizes = [num_attributes, layer.in_features - num_attributes]
    attributes_BF, others_BF = torch.split(features_BF, sizes, dim=1)
    of_attributes_HF, of_others_HF = torch.split(layer.weight, sizes, dim=1)
    users_UF = attributes_BF.index_select(0, sequence.one_row_U)
    users_UH = functional.linear(users_UF, of_attributes_HF, layer.bias)
    return torch.addmm(sequence.to_rows(users_UH), others_BF, of_others_HF.T)


def _match_loss(sequence: BehaviourSequence, before_UD: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and weights [U]; users with too few behaviours, or virtual ones, weigh 0."""
    match = sequence.match
    assert match is not None, "shapes.has_match promises match vectors for every sequence"
    losses_U = sampled_softmax(
        before_UD,
        match.last_UD,
        match.negatives_KD,
        match.last_ids_U,
        match.negative_ids_K,
        match.last_log_q_U,
        match.negative_log_q_K,
    )
    counts_U = (sequence.lengths_B >= MIN_BEHAVIOURS) & ~sequence.is_virtual_B
    return losses_U, counts_U.to(losses_U.dtype)

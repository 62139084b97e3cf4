"""Deep match to rank (Lyu et al., AAAI 2020)."""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from mail_torchrec.losses.match import sampled_softmax
from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import (
    BehaviourSequence,
    DedupSequence,
    InputShapes,
    RankingInputs,
    RankingOutput,
    SequenceShape,
    position_mask,
)
from mail_torchrec.towers.layers.attention import masked_softmax, pair_scores, weighted_sum
from mail_torchrec.towers.layers.mlp import LastDimPReLU, dense_layers, last_dim
from mail_torchrec.towers.layers.positions import Positions

MIN_BEHAVIOURS = 3
"""Rows with fewer behaviours are left out of the match loss."""


class DMRSettings(Settings):
    """Defaults are the paper's."""

    hidden_dims: tuple[PositiveInt, ...] = (512, 256, 128)
    """Hidden layers of the MLP."""
    attention_dims: tuple[PositiveInt, ...] = (80, 40)
    """Hidden layers of the attention function g."""
    embedding_dim: PositiveInt = 8
    """Of a position and of an action, in each of the two networks."""
    match_weight: float = Field(default=0.1, ge=0.0)
    """Of the auxiliary match loss; 0 does without it and without the output-side item table V'."""
    num_negatives: PositiveInt = 2000
    """Sampled negatives a batch."""
    negatives: Literal["log_uniform", "unigram", "uniform"] = "log_uniform"
    """How they are drawn, see ``data/negatives.py``; hashed item tables have no frequencies and
    need uniform."""

    @property
    def needs_match(self) -> bool:
        """Whether the data layer has to fill :attr:`BehaviourSequence.match`."""
        return self.match_weight > 0


class BehaviourScores(nn.Module):
    """The raw score of each behaviour, ``a_t = g([q_t, e_t, q_t - e_t, q_t * e_t])``, [B, T].

    The query ``q_t`` is made of the behaviour's position and action, and of the target item in the
    item-to-item network. Position 0 is the newest, so that an embedding means the same whatever the
    length and the padding.

    Args:
        settings: widths.
        shape: of the sequence.
        target_dim: width of the target item; 0 leaves it out.
    """

    def __init__(self, settings: DMRSettings, shape: SequenceShape, target_dim: int) -> None:
        super().__init__()
        self.position = nn.Embedding(shape.max_length, settings.embedding_dim)
        self.action = (
            nn.Embedding(shape.num_actions, settings.embedding_dim) if shape.num_actions else None
        )
        self.embedding_dim = settings.embedding_dim
        query_dim = settings.embedding_dim * (2 if shape.num_actions else 1) + target_dim
        self.query = nn.Sequential(nn.Linear(query_dim, shape.dim), LastDimPReLU(shape.dim))
        layers = dense_layers(4 * shape.dim, settings.attention_dims, lambda _: nn.Sigmoid())
        self.g = nn.Sequential(
            *layers, nn.Linear(last_dim(4 * shape.dim, settings.attention_dims), 1)
        )

    def forward(self, sequence: BehaviourSequence, target_BD: Tensor | None = None) -> Tensor:
        """Scores of all positions; those behind a row's length mean nothing, but are finite."""
        of_users_UTD = self._of_users(sequence.users)
        of_target_BD = (
            None if target_BD is None else functional.linear(target_BD, self._weights()[-1])
        )

        def query(positions: Positions) -> Tensor:
            query_PD = positions.of_users(of_users_UTD)
            queried: Tensor = self.query[1](
                query_PD if of_target_BD is None else query_PD + positions.of_rows(of_target_BD)
            )
            return queried

        return pair_scores(self.g, sequence, query)

    def _weights(self) -> tuple[Tensor, ...]:
        """The query layer's weights of position, action and target, those that there are."""
        layer = self.query[0]
        known = [self.embedding_dim] * (1 if self.action is None else 2)
        weights: tuple[Tensor, ...] = torch.split(
            layer.weight, [*known, layer.in_features - sum(known)], dim=1
        )
        return weights

    def _of_users(self, users: BehaviourSequence) -> Tensor:
        """What position and action give to the query, bias and all, [U, T, d]: the query layer on the few embeddings, then looked up."""
        weights, layer = self._weights(), self.query[0]
        order_T = torch.arange(users.values_BTD.shape[1], device=users.values_BTD.device)
        places_UT = (users.lengths_B.unsqueeze(1) - 1 - order_T).clamp(min=0)
        query_UTD = functional.embedding(
            places_UT, functional.linear(self.position.weight, weights[0], layer.bias)
        )
        if self.action is None:
            return query_UTD
        return query_UTD + functional.embedding(
            users.actions_BT, functional.linear(self.action.weight, weights[1])
        )


class UserToItem(nn.Module):
    """User vectors ``u_t = PReLU(Dense(s_t))`` in the space of V', ``s_t`` the attended sum of the first ``t`` behaviours.

    The paper's softmax over each prefix gives a vector for every ``t``; only ``t = L`` and ``t = L
    - 1`` are ever used (``L`` behaviours in the row), so only they are computed: two softmaxes over
    T instead of one over T x T.
    """

    def __init__(self, settings: DMRSettings, shape: SequenceShape) -> None:
        super().__init__()
        match_dim = shape.match_dim or shape.dim
        self.scores = BehaviourScores(settings, shape, target_dim=0)
        self.user = nn.Sequential(nn.Linear(shape.dim, match_dim), nn.PReLU(match_dim))

    def forward(self, sequence: BehaviourSequence) -> tuple[Tensor, Tensor]:
        """``u_T`` of all behaviours and ``u_{T-1}`` of all but the newest, each [B, match_dim]."""
        scores_BT, values_BTD = self.scores(sequence), sequence.real_BTD
        masks = [
            position_mask(sequence.lengths_B - left_out, scores_BT.shape[1]) for left_out in (0, 1)
        ]
        now_BD, before_BD = (
            self.user(weighted_sum(masked_softmax(scores_BT, mask_BT), values_BTD))
            for mask_BT in masks
        )
        return now_BD, before_BD


class ItemToItem(nn.Module):
    """Behaviours attended from the target item."""

    def __init__(self, settings: DMRSettings, shape: SequenceShape) -> None:
        super().__init__()
        self.scores = BehaviourScores(settings, shape, target_dim=shape.dim)

    def forward(self, sequence: BehaviourSequence) -> tuple[Tensor, Tensor]:
        """The relevance [B] (sum of the raw scores of real positions) and the attended sum of behaviours [B, d]."""
        scores_BT, mask_BT = self.scores(sequence, sequence.target_BD), sequence.mask_BT
        return (scores_BT * mask_BT).sum(1), weighted_sum(
            masked_softmax(scores_BT, mask_BT), sequence.real_BTD
        )


class DMR(nn.Module):
    """Both networks for each sequence, and an MLP over fields, numeric features and what the networks found.

    A sequence gives ``[sum v, target * sum v, r, item-to-item relevance, attended sum]`` with ``r =
    u_T . v'_target``; without V' the ordinary target vector stands in for ``v'_target``. The
    auxiliary loss ``match`` is the mean over (row, sequence) pairs with at least 3 real behaviours
    of the sampled softmax in which ``u_{T-1}`` predicts the newest.

    Args:
        settings: widths and the match loss.
        shapes: of the inputs.
    """

    Settings = DMRSettings

    def __init__(self, settings: DMRSettings, shapes: InputShapes) -> None:
        super().__init__()
        self.settings, self.has_match = settings, shapes.has_match
        # Lists, not dicts by name: a sequence may bear the name of a method of nn.ModuleDict.
        self.user_to_item = nn.ModuleList(
            UserToItem(settings, shape) for shape in shapes.sequences.values()
        )
        self.item_to_item = nn.ModuleList(
            ItemToItem(settings, shape) for shape in shapes.sequences.values()
        )
        self.sequences = list(shapes.sequences)
        in_dim = shapes.features_dim + sum(3 * shape.dim + 2 for shape in shapes.sequences.values())
        self.representation_dim = last_dim(in_dim, settings.hidden_dims)
        layers = dense_layers(in_dim, settings.hidden_dims, nn.PReLU)
        self.mlp = nn.Sequential(
            nn.BatchNorm1d(in_dim), *layers, nn.Linear(self.representation_dim, 1)
        )

    def forward(self, inputs: RankingInputs) -> RankingOutput:
        """The logits [B], if wanted the match loss, and the last hidden layer."""
        features = inputs.features
        match_losses, vectors = [], {}
        for name, user_to_item, item_to_item in zip(
            self.sequences, self.user_to_item, self.item_to_item, strict=True
        ):
            sequence = inputs.sequences[name]
            now_UD, before_UD = user_to_item(sequence.users)
            wanted_BD = self._wanted(sequence)
            r_B1 = (sequence.spread(now_UD) * wanted_BD).sum(1, keepdim=True)
            relevance_B, attended_BD = item_to_item(sequence)
            sum_BD = sequence.sum_BD
            features += [
                sum_BD,
                sequence.target_BD * sum_BD,
                r_B1,
                relevance_B.unsqueeze(1),
                attended_BD,
            ]
            vectors[name] = now_UD, wanted_BD
            if self.has_match and self.settings.needs_match:
                match_losses.append(
                    [sequence.spread(part_U) for part_U in _match_loss(sequence.users, before_UD)]
                )
        representation_BR = self._representation(torch.cat(features, dim=1), inputs)
        logits_B = self.mlp[-1](representation_BR).squeeze(1)
        return RankingOutput(logits_B, self._auxiliary(match_losses), representation_BR, vectors)

    def _representation(self, features_BF: Tensor, inputs: RankingInputs) -> Tensor:
        """All layers but the last. Of rows that share users, the attributes' part of the first dense layer is computed once a user."""
        norm, *layers = self.mlp[:-1]
        sequence, normed_BF = next(iter(inputs.sequences.values()), None), norm(features_BF)
        if (
            not isinstance(sequence, DedupSequence)
            or not isinstance(first := layers[0], nn.Linear)
            or torch.compiler.is_compiling()
        ):
            return nn.Sequential(*layers)(normed_BF)
        attributes = inputs.attributes_BAD.shape[1:].numel()
        of_users_UF = normed_BF[:, :attributes].index_select(0, sequence.row_of_user_U)
        of_users_UH = functional.linear(of_users_UF, first.weight[:, :attributes], first.bias)
        hidden_BH = torch.addmm(
            sequence.spread(of_users_UH), normed_BF[:, attributes:], first.weight[:, attributes:].T
        )
        return nn.Sequential(*layers[1:])(hidden_BH)

    def _wanted(self, sequence: BehaviourSequence) -> Tensor:
        """``v'_target`` [B, match_dim]."""
        match = sequence.match if self.has_match else None
        return sequence.target_BD if match is None else match.target_BD

    def _auxiliary(
        self, match_losses: list[list[Tensor]]
    ) -> dict[str, tuple[Tensor, Tensor, float]]:
        """A row's loss is the mean over its sequences that count, its weight their number: the mean over all pairs."""
        if not match_losses:
            return {}
        losses_SB, weights_SB = (torch.stack(part) for part in zip(*match_losses, strict=True))
        weights_B = weights_SB.sum(0)
        losses_B = (losses_SB * weights_SB).sum(0) / weights_B.clamp(min=1)
        return {"match": (losses_B, weights_B, self.settings.match_weight)}


def _match_loss(sequence: BehaviourSequence, before_UD: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and weights of users; those with too few behaviours, or virtual ones, weigh 0."""
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

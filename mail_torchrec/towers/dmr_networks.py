"""Attention networks of DMR (Lyu et al., AAAI 2020): user-to-item and item-to-item.

Shape letters as in ``towers/inputs.py``; ``P`` positions of ``layers/positions.py``, ``H`` hidden
elements. Vectors of the user-to-item network are ``match_dim`` elements wide, ``D`` too.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.attention import masked_softmax, pair_scores, weighted_sum
from mail_torchrec.towers.layers.blocked_scores import Gathered, blocked_scores
from mail_torchrec.towers.layers.cpu_bfloat16 import multiplies_in_bfloat16
from mail_torchrec.towers.layers.mlp import LastDimPReLU, dense_layers, last_dim
from mail_torchrec.towers.layers.positions import Positions, RealPositions
from mail_torchrec.towers.layers.sequences import BehaviourSequence, position_mask

_FEW_ACTIONS = 16
"""Up to so many, sums of the terms of all places and actions are made ahead."""


class BehaviourScores(nn.Module):
    """Scores each behaviour by ``a_t = g([q_t, e_t, q_t - e_t, q_t * e_t])``.

    The query ``q_t`` is made of the behaviour's position and action, and of the target item in the
    item-to-item network. Position 0 is the newest, so that an embedding means the same whatever the
    length and the padding.

    Args:
        shape: of the sequence.
        attention_dims: hidden layers of ``g``.
        embedding_dim: width of the position and action embeddings.
        target_dim: width of the target item; 0 leaves it out.
    """

    def __init__(
        self,
        shape: SequenceShape,
        attention_dims: tuple[int, ...],
        embedding_dim: int,
        *,
        target_dim: int,
    ) -> None:
        super().__init__()
        self.position = nn.Embedding(shape.max_length, embedding_dim)
        self.action = nn.Embedding(shape.num_actions, embedding_dim) if shape.num_actions else None
        self.embedding_dim = embedding_dim
        query_dim = embedding_dim * (2 if shape.num_actions else 1) + target_dim
        self.query = nn.Sequential(nn.Linear(query_dim, shape.dim), LastDimPReLU(shape.dim))
        layers = dense_layers(4 * shape.dim, attention_dims, lambda _: nn.Sigmoid())
        last = nn.Linear(last_dim(4 * shape.dim, attention_dims), 1)
        self.g = nn.Sequential(*layers, last)

    def forward(self, sequence: BehaviourSequence, target_BD: Tensor | None = None) -> Tensor:
        """Scores all positions [B, T]; undefined but finite behind a row's length.

        Args:
            sequence: the behaviours.
            target_BD: vectors of the target items, if they are part of the query.
        """
        if multiplies_in_bfloat16(sequence.values_BTD):
            return self._blocked_scores(sequence, target_BD)
        users_UTD = self._user_queries(sequence.users)
        rows_BD: Tensor | None = None
        if target_BD is not None:
            rows_BD = functional.linear(target_BD, self._query_weights()[-1])

        def make_query(positions: Positions) -> Tensor:
            query_PD = positions.gather_users(users_UTD)
            if rows_BD is not None:
                query_PD = query_PD + positions.gather_rows(rows_BD)
            activated_PD: Tensor = self.query[1](query_PD)
            return activated_PD

        return pair_scores(self.g, sequence, make_query)

    def _blocked_scores(self, sequence: BehaviourSequence, target_BD: Tensor | None) -> Tensor:
        """The same scores [B, T], where products are faster than memory."""
        positions, users = RealPositions(sequence), sequence.users
        place_N, weights = positions.user_place_N, self._query_weights()

        def gathered(table: Tensor, rows_UT: Tensor) -> Gathered:
            return Gathered(table, rows_UT.flatten().index_select(0, place_N))

        queries = [gathered(self._by_place(weights[0]), _places(users))]
        if self.action is not None:
            by_action = functional.linear(self.action.weight, weights[1])
            queries.append(gathered(by_action, users.actions_BT))
        if target_BD is not None:
            by_row = functional.linear(target_BD, weights[-1])
            queries.append(Gathered(by_row, positions.row_N))
        behaviours = Gathered(users.real_BTD.flatten(0, 1), place_N)
        scores_N = blocked_scores(self.g, self.query[1].weight, behaviours, queries)
        return positions.to_padded(scores_N.to(users.values_BTD.dtype))

    def _query_weights(self) -> tuple[Tensor, ...]:
        """The query layer's weights of position, action and target, those that there are."""
        layer = self.query[0]
        dims = [self.embedding_dim] * (1 if self.action is None else 2)
        weights: tuple[Tensor, ...] = torch.split(
            layer.weight, [*dims, layer.in_features - sum(dims)], dim=1
        )
        return weights

    def _user_queries(self, users: BehaviourSequence) -> Tensor:
        """The query layer's terms of position, action and bias, [U, T, D].

        The layer is applied to the few embeddings, whose results are then gathered.
        """
        weights, places_UT = self._query_weights(), _places(users)
        by_place_TD = self._by_place(weights[0])
        if self.action is None:
            return _looked_up(by_place_TD, places_UT)
        by_action_AD = functional.linear(self.action.weight, weights[1])
        num_actions = len(by_action_AD)
        if num_actions > _FEW_ACTIONS:
            return _looked_up(by_place_TD, places_UT) + _looked_up(by_action_AD, users.actions_BT)
        # One row for each place and action: one lookup, and one sum of its gradients.
        both_XD = (by_place_TD.unsqueeze(1) + by_action_AD).flatten(0, 1)
        return _looked_up(both_XD, places_UT * num_actions + users.actions_BT)

    def _by_place(self, weight_DX: Tensor) -> Tensor:
        """The query layer's terms of position and bias, [T, D]."""
        return functional.linear(self.position.weight, weight_DX, self.query[0].bias)


def _looked_up(table_RD: Tensor, rows_UT: Tensor) -> Tensor:
    """Rows of a small table, [U, T, D]."""
    if table_RD.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.embedding(rows_UT, table_RD)
    # On a CPU its gradients take half of the time of an embedding's.
    return table_RD.index_select(0, rows_UT.flatten()).view(*rows_UT.shape, -1)


def _places(users: BehaviourSequence) -> Tensor:
    """The place of each behaviour before the newest one [U, T]."""
    order_T = torch.arange(users.values_BTD.shape[1], device=users.values_BTD.device)
    return (users.lengths_B.unsqueeze(1) - 1 - order_T).clamp(min=0)


class UserToItemNetwork(nn.Module):
    """User vectors ``u_t = PReLU(Dense(s_t))`` in the space of V'.

    ``s_t`` is the attended sum of the first ``t`` behaviours. The paper's softmax over each prefix
    gives a vector for every ``t``; only ``t = L`` and ``t = L - 1`` are ever used (``L`` behaviours
    in the row), so only they are computed: two softmaxes over T instead of one over T x T.

    Args:
        shape: of the sequence.
        attention_dims: hidden layers of the attention function.
        embedding_dim: width of the position and action embeddings.
    """

    def __init__(
        self, shape: SequenceShape, attention_dims: tuple[int, ...], embedding_dim: int
    ) -> None:
        super().__init__()
        self.match_dim = shape.match_dim or shape.dim
        self.scores = BehaviourScores(shape, attention_dims, embedding_dim, target_dim=0)
        self.user = nn.Sequential(nn.Linear(shape.dim, self.match_dim), nn.PReLU(self.match_dim))

    def forward(self, sequence: BehaviourSequence) -> tuple[Tensor, Tensor]:
        """Computes ``u_L`` of all behaviours and ``u_{L-1}`` without the newest, each [B, D].

        Args:
            sequence: the behaviours.
        """
        scores_BT = self.scores(sequence)
        return self._attend(sequence, scores_BT, 0), self._attend(sequence, scores_BT, 1)

    def _attend(self, sequence: BehaviourSequence, scores_BT: Tensor, num_left_out: int) -> Tensor:
        """The user vectors [B, D] without the newest ``num_left_out`` behaviours."""
        mask_BT = position_mask(sequence.lengths_B - num_left_out, scores_BT.shape[1])
        attended_BD = weighted_sum(masked_softmax(scores_BT, mask_BT), sequence.real_BTD)
        vectors_BD: Tensor = self.user(attended_BD)
        return vectors_BD


class ItemToItemNetwork(nn.Module):
    """Behaviours attended by the target item.

    Args:
        shape: of the sequence.
        attention_dims: hidden layers of the attention function.
        embedding_dim: width of the position and action embeddings.
    """

    def __init__(
        self, shape: SequenceShape, attention_dims: tuple[int, ...], embedding_dim: int
    ) -> None:
        super().__init__()
        self.scores = BehaviourScores(shape, attention_dims, embedding_dim, target_dim=shape.dim)

    def forward(self, sequence: BehaviourSequence) -> tuple[Tensor, Tensor]:
        """Computes the relevance [B] and the attended sum of behaviours [B, D].

        The relevance is the sum of the raw scores of real positions.

        Args:
            sequence: the behaviours and the target items.
        """
        scores_BT, mask_BT = self.scores(sequence, sequence.target_BD), sequence.mask_BT
        attended_BD = weighted_sum(masked_softmax(scores_BT, mask_BT), sequence.real_BTD)
        return (scores_BT * mask_BT).sum(1), attended_BD

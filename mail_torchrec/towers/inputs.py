"""The contract between the tables and the towers: plain tensors in, logits out.

Shape letters: ``B`` rows, ``A`` / ``C`` / ``I`` attribute, context and item fields, ``N`` numeric
features, ``T`` positions of a behaviour sequence, ``K`` sampled negatives, ``d`` a table dimension
(it may differ between groups), ``R`` a tower's last hidden layer.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


def position_mask(lengths_B: Tensor, num_positions: int) -> Tensor:
    """[B, num_positions], True on the first ``lengths_B[b]`` positions of row ``b``."""
    return torch.arange(num_positions, device=lengths_B.device) < lengths_B.unsqueeze(1)


@dataclass(frozen=True)
class SequenceShape:
    """Static facts of one behaviour sequence."""

    max_length: int
    """T: every sequence is padded to it."""
    dim: int
    """d of the behaviour vectors and of the target item."""
    num_actions: int
    """Rows of the action table; 0 where the sequence has no actions."""
    match_dim: int | None = None
    """Width of the vectors of the output-side item table V'; by default ``dim``."""


@dataclass(frozen=True)
class InputShapes:
    """Static facts of :class:`RankingInputs`, from which a tower sizes its layers."""

    num_attributes: int
    attribute_dim: int
    num_context: int
    context_dim: int
    num_items: int
    item_dim: int
    num_numeric: int
    sequences: dict[str, SequenceShape]
    has_match: bool = False
    """Whether :attr:`BehaviourSequence.match` is filled (a tower asks for it by ``needs_match`` of
    its settings)."""

    @property
    def dims(self) -> dict[str, int]:
        """The dimension of each group that has fields, and of each sequence, by a name for messages."""
        groups = {
            "attributes": (self.num_attributes, self.attribute_dim),
            "context": (self.num_context, self.context_dim),
            "items": (self.num_items, self.item_dim),
        }
        dims = {name: dim for name, (num, dim) in groups.items() if num}
        return dims | {f"behaviours {name}": shape.dim for name, shape in self.sequences.items()}

    @property
    def features_dim(self) -> int:
        """Width of :attr:`RankingInputs.features` side by side."""
        fields = (
            self.num_attributes * self.attribute_dim
            + self.num_context * self.context_dim
            + self.num_items * self.item_dim
        )
        return fields + self.num_numeric


@dataclass
class Match:
    """What an auxiliary match loss needs: vectors of the output-side item table V', and the sampling correction.

    ``K`` is 0 outside training.
    """

    target_BD: Tensor
    """V' of the target item."""
    last_UD: Tensor
    """V' of each user's newest behaviour (row 0's vector where there is none); a row is a user
    where rows share none."""
    negatives_KD: Tensor
    """V' of the sampled negatives, shared by the batch."""
    last_ids_U: Tensor
    negative_ids_K: Tensor
    last_log_q_U: Tensor
    """Log of the expected count of that id among the K samples."""
    negative_log_q_K: Tensor


@dataclass
class BehaviourSequence:
    """One behaviour sequence a row, oldest first, padded behind.

    A row of length 2 with T = 4::

        values_BTD[b] = [v_1, v_2, 0, 0]     lengths_B[b] = 2     newest = v_2
    """

    values_BTD: Tensor
    lengths_B: Tensor
    actions_BT: Tensor
    """Rows of the action table, 0 on padding, on virtual behaviours and where there are no actions
    (int64)."""
    target_BD: Tensor
    """The target item's vector from the table that the behaviours share."""
    is_virtual_B: Tensor
    """Rows whose behaviours are virtual: the zero-shot tower made them, or a baseline in its place
    (bool)."""
    match: Match | None = None

    @property
    def users(self) -> "BehaviourSequence":
        """The same once a user, for work in which the target item has no part: rows may share users (:class:`DedupSequence`)."""
        return self

    def spread(self, x_U: Tensor) -> Tensor:
        """What was computed from :attr:`users`, user by user, in each row [B, ...]."""
        return x_U

    @property
    def mask_BT(self) -> Tensor:
        """True on real positions."""
        return position_mask(self.lengths_B, self.values_BTD.shape[1])

    @property
    def real_BTD(self) -> Tensor:
        """The vectors with zeros behind each row's length, whatever stood there."""
        real_BTD: Tensor | None = getattr(self, "_real_BTD", None)
        if (
            real_BTD is None
        ):  # several parts of a tower ask; torch.export knows no functools.cached_property
            self._real_BTD = real_BTD = self.values_BTD.masked_fill(~self.mask_BT.unsqueeze(2), 0.0)
        return real_BTD

    @property
    def sum_BD(self) -> Tensor:
        """The sum of the real vectors."""
        return self.spread(self.users.real_BTD.sum(1))

    @property
    def mean_BD(self) -> Tensor:
        """The mean of the real vectors, zeros where a row has none."""
        users = self.users
        return self.spread(users.real_BTD.sum(1) / users.lengths_B.clamp(min=1).unsqueeze(1))


@dataclass
class DedupSequence(BehaviourSequence):
    """A sequence of rows that share users, as the candidates of one request and the impressions of one visit do.

    Rows of a user have its attributes. Work on :attr:`users` is done once a user. Its vectors are
    real ones: zeros stand behind each row's length.
    """

    of_users: BehaviourSequence = field(kw_only=True)
    """One row a user; its target means nothing."""
    user_of_row_B: Tensor = field(kw_only=True)

    @staticmethod
    def of(
        users: BehaviourSequence, user_of_row_B: Tensor, target_BD: Tensor, match: Match | None
    ) -> "DedupSequence":
        """The behaviours of each row's user beside its target item."""
        return DedupSequence(
            values_BTD=users.real_BTD.index_select(0, user_of_row_B),
            lengths_B=users.lengths_B.index_select(0, user_of_row_B),
            actions_BT=users.actions_BT.index_select(0, user_of_row_B),
            target_BD=target_BD,
            is_virtual_B=users.is_virtual_B.index_select(0, user_of_row_B),
            match=match,
            of_users=users,
            user_of_row_B=user_of_row_B,
        )

    @property
    def row_of_user_U(self) -> Tensor:
        """The place of one of each user's rows."""
        rows_B = torch.arange(len(self.user_of_row_B), device=self.user_of_row_B.device)
        return rows_B.new_zeros(len(self.of_users.lengths_B)).index_copy(
            0, self.user_of_row_B, rows_B
        )

    def apart(self) -> BehaviourSequence:
        """The same rows, each as a user of its own."""
        return BehaviourSequence(
            self.values_BTD,
            self.lengths_B,
            self.actions_BT,
            self.target_BD,
            self.is_virtual_B,
            self.match,
        )

    @property
    def users(self) -> BehaviourSequence:
        """The behaviours once a user."""
        return self.of_users

    def spread(self, x_U: Tensor) -> Tensor:
        """Each row has what its user has."""
        return x_U.index_select(0, self.user_of_row_B)

    @property
    def real_BTD(self) -> Tensor:
        """The vectors, which were masked user by user."""
        return self.values_BTD


@dataclass
class RankingInputs:
    """Everything that a ranking tower sees."""

    attributes_BAD: Tensor
    context_BCD: Tensor
    items_BID: Tensor
    """Item fields; the target items of the sequences come first."""
    numeric_BN: Tensor
    sequences: dict[str, BehaviourSequence]
    first_order_B: Tensor | None = None
    """The sum of the first-order weights of all attribute, context and item ids, a list's weights
    pooled as its vectors are. Behaviours have none: virtual ones could not. None unless the tower
    asks for them by ``needs_first_order`` of its settings."""

    @property
    def features(self) -> list[Tensor]:
        """All fields and numeric features but the sequences, each [B, width], to be put side by side."""
        return [
            self.attributes_BAD.flatten(1),
            self.items_BID.flatten(1),
            self.context_BCD.flatten(1),
            self.numeric_BN,
        ]


@dataclass
class Rows:
    """What rows have beside their users."""

    context_BCD: Tensor | None
    """None where the context is the users'."""
    items_BID: Tensor
    numeric_BN: Tensor
    """All numeric features, those of the users among them."""
    targets: dict[str, Tensor]
    """Sequence -> the target item's vector [B, d]."""
    matches: dict[str, Match]
    first_order_B: Tensor | None
    inverse_indices_B: Tensor | None
    """The place of each row's user; None where each row is a user of its own."""

    def of(self, users: RankingInputs) -> RankingInputs:
        """The rows with what their users have; the users' items, targets and matches count for nothing."""
        first_order_B = self.first_order_B
        if first_order_B is not None and users.first_order_B is not None:
            first_order_B = first_order_B + self._spread(users.first_order_B)
        return RankingInputs(
            self._spread(users.attributes_BAD),
            self._spread(users.context_BCD) if self.context_BCD is None else self.context_BCD,
            self.items_BID,
            self.numeric_BN,
            {name: self._sequence(name, sequence) for name, sequence in users.sequences.items()},
            first_order_B,
        )

    def apart(self, users: RankingInputs) -> "tuple[RankingInputs, Rows]":
        """The users once a row, items and all; and rows that are users of their own."""
        rows = self.of(users)
        sequences = {
            name: seq.apart() if isinstance(seq, DedupSequence) else seq
            for name, seq in rows.sequences.items()
        }
        apart = replace(
            rows,
            sequences=sequences,
            first_order_B=None
            if users.first_order_B is None
            else self._spread(users.first_order_B),
        )
        return apart, replace(
            self,
            inverse_indices_B=None,
            matches={name: self._apart(match) for name, match in self.matches.items()},
        )

    def _apart(self, match: Match) -> Match:
        last = (
            self._spread(part_U) for part_U in (match.last_UD, match.last_ids_U, match.last_log_q_U)
        )
        return replace(
            match, **dict(zip(("last_UD", "last_ids_U", "last_log_q_U"), last, strict=True))
        )

    def _sequence(self, name: str, users: BehaviourSequence) -> BehaviourSequence:
        target_BD, match = self.targets[name], self.matches.get(name)
        if self.inverse_indices_B is None:
            return replace(users, target_BD=target_BD, match=match)
        return DedupSequence.of(
            replace(users, match=match), self.inverse_indices_B, target_BD, match
        )

    def _spread(self, x_U: Tensor) -> Tensor:
        return (
            x_U if self.inverse_indices_B is None else x_U.index_select(0, self.inverse_indices_B)
        )


def with_attribute(inputs: RankingInputs, field: int, vectors_BD: Tensor) -> RankingInputs:
    """The inputs with these vectors for one of the attributes, in which rows of one user may then differ: each is a user of its own."""
    before_BAD, _, behind_BAD = inputs.attributes_BAD.tensor_split((field, field + 1), dim=1)
    sequences = {
        name: part.apart() if isinstance(part, DedupSequence) else part
        for name, part in inputs.sequences.items()
    }
    return replace(
        inputs,
        attributes_BAD=torch.cat([before_BAD, vectors_BD.unsqueeze(1), behind_BAD], dim=1),
        sequences=sequences,
    )


@dataclass
class RankingOutput:
    """What a ranking tower returns; a tower without auxiliary losses may return the bare logits instead."""

    logits_B: Tensor
    auxiliary: dict[str, tuple[Tensor, Tensor, float]] = field(default_factory=dict)
    """Loss name -> (loss of each row [B], weight of each row in the mean [B], weight of the loss in
    the sum)."""
    representation_BR: Tensor | None = None
    """What the logit was computed from, for heads of further tasks; as wide as the tower's
    ``representation_dim`` says."""
    vectors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Sequence -> each user's vector [U, D] (a row is a user where rows share none) and each row's
    item vector [B, D], whose product the tower takes for the user's liking: what a matching stage
    searches by."""

    @staticmethod
    def of(returned: "Tensor | RankingOutput") -> "RankingOutput":
        """What a tower returned, bare logits [B] wrapped."""
        return returned if isinstance(returned, RankingOutput) else RankingOutput(returned)

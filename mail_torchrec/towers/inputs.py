"""Inputs and outputs of ranking towers: plain tensors in, logits out.

Shape letters: ``B`` rows, ``U`` users (every row is a user of its own where rows share none),
``A`` / ``C`` / ``I`` attribute, context and item fields, ``N`` numeric features, ``T`` positions of
a behaviour sequence, ``D`` elements of a vector (they may differ between groups), ``R`` a tower's
last hidden layer.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mail_torchrec.towers.layers.gathering import gather
from mail_torchrec.towers.layers.sequences import (
    BehaviourSequence,
    DedupSequence,
    MatchInputs,
    expand_sequences,
)


@dataclass(frozen=True)
class SequenceShape:
    """Static sizes of one behaviour sequence."""

    max_length: int
    """T: every sequence is padded to it."""
    dim: int
    """D of the behaviour vectors and of the target item."""
    num_actions: int
    """Rows of the action table; 0 where the sequence has no actions."""
    match_dim: int | None = None
    """Width of the vectors of the output-side item table V'; by default ``dim``."""


@dataclass(frozen=True)
class InputShapes:
    """Static sizes of :class:`RankingInputs`, from which a tower sizes its layers."""

    num_attributes: int
    attribute_dim: int
    num_context: int
    context_dim: int
    num_items: int
    item_dim: int
    num_numeric: int
    sequences: dict[str, SequenceShape]
    """Column of the behaviour sequence -> its sizes."""
    has_match: bool = False
    """True where :attr:`BehaviourSequence.match` is filled (a tower asks for it by ``needs_match``
    of its settings)."""
    num_numeric_attributes: int = 0
    """Of the numeric features those of the user, which come first."""
    num_numeric_items: int = 0
    """Of the numeric features those of the items, which come last; products of
    ``model.attribute_crosses`` are among them, behind the others."""

    @property
    def dims(self) -> dict[str, int]:
        """The dimension of each group that has fields and of each sequence, by display name."""
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
class RankingInputs:
    """Complete input of a ranking tower."""

    attributes_BAD: Tensor
    """Embeddings of the user attributes."""
    context_BCD: Tensor
    """Embeddings of the context fields."""
    items_BID: Tensor
    """Embeddings of the item fields; the target items of the sequences come first."""
    numeric_BN: Tensor
    """Numeric features, those of the user first."""
    sequences: dict[str, BehaviourSequence]
    """Column of the behaviour sequence -> behaviours, real or virtual."""
    first_order_B: Tensor | None = None
    """The sum of the first-order weights of all attribute, context and item ids, a list's weights
    pooled as its vectors are. Behaviours have none: virtual ones could not. None unless the tower
    asks for them by ``needs_first_order`` of its settings."""

    @property
    def features(self) -> list[Tensor]:
        """Flattened fields and the numeric features, each [B, width], without the sequences."""
        return [
            self.attributes_BAD.flatten(1),
            self.items_BID.flatten(1),
            self.context_BCD.flatten(1),
            self.numeric_BN,
        ]


@dataclass
class CandidateInputs:
    """Candidate side of a batch: what each row holds beside the features of its user."""

    context_BCD: Tensor | None
    """Embeddings of the context fields; None where the context belongs to the users."""
    items_BID: Tensor
    """Embeddings of the item fields."""
    numeric_BN: Tensor
    """All numeric features, those of the users among them."""
    targets: dict[str, Tensor]
    """Sequence -> vectors of the target items [B, D]."""
    matches: dict[str, MatchInputs]
    """Sequence -> inputs of its match loss."""
    first_order_B: Tensor | None
    """The sum of the first-order weights of context and item ids, if the tables store them."""
    inverse_indices_B: Tensor | None
    """The place of each row's user (int64); None where every row is a user of its own."""

    def join_users(self, users: RankingInputs) -> RankingInputs:
        """Joins each row to the features of its user.

        Args:
            users: one row a user; their items, targets and match inputs are not read.
        """
        first_order_B = self.first_order_B
        if first_order_B is not None and users.first_order_B is not None:
            first_order_B = first_order_B + self._to_rows(users.first_order_B)
        return RankingInputs(
            self._to_rows(users.attributes_BAD),
            self._to_rows(users.context_BCD) if self.context_BCD is None else self.context_BCD,
            self.items_BID,
            self.numeric_BN,
            {name: self._sequence(name, sequence) for name, sequence in users.sequences.items()},
            first_order_B,
        )

    def expand_users(self, users: RankingInputs) -> "tuple[RankingInputs, CandidateInputs]":
        """Undoes the deduplication of users.

        Args:
            users: one row a user.

        Returns:
            The users once a row [B, ...], context and items included, and candidate inputs in
            which every row is a user of its own.
        """
        rows = self.join_users(users)
        first_order_B = users.first_order_B
        expanded = replace(
            rows,
            sequences=expand_sequences(rows.sequences),
            first_order_B=None if first_order_B is None else self._to_rows(first_order_B),
        )
        matches = {name: self._expanded_match(match) for name, match in self.matches.items()}
        return expanded, replace(self, inverse_indices_B=None, matches=matches)

    def without_negatives(self) -> "CandidateInputs":
        """Returns the rows without sampled negatives, so that no match loss is computed."""
        matches = {
            name: replace(
                match,
                negatives_KD=match.negatives_KD[:0],
                negative_ids_K=match.negative_ids_K[:0],
                negative_log_q_K=match.negative_log_q_K[:0],
            )
            for name, match in self.matches.items()
        }
        return replace(self, matches=matches)

    def _expanded_match(self, match: MatchInputs) -> MatchInputs:
        return replace(
            match,
            last_UD=self._to_rows(match.last_UD),
            last_ids_U=self._to_rows(match.last_ids_U),
            last_log_q_U=self._to_rows(match.last_log_q_U),
        )

    def _sequence(self, name: str, users: BehaviourSequence) -> BehaviourSequence:
        target_BD, match = self.targets[name], self.matches.get(name)
        if self.inverse_indices_B is None:
            return replace(users, target_BD=target_BD, match=match)
        return DedupSequence.from_users(
            replace(users, match=match), self.inverse_indices_B, target_BD, match
        )

    def _to_rows(self, x_U: Tensor) -> Tensor:
        return x_U if self.inverse_indices_B is None else gather(x_U, self.inverse_indices_B)


def replace_attribute(inputs: RankingInputs, field: int, vectors_BD: Tensor) -> RankingInputs:
    """Returns the inputs with other vectors for one of the attributes.

    Rows of one user may then differ in it, so that every row becomes a user of its own.

    Args:
        inputs: inputs of any rows.
        field: index of the attribute among the attributes.
        vectors_BD: its new vectors.
    """
    before_BAD, _, behind_BAD = inputs.attributes_BAD.tensor_split((field, field + 1), dim=1)
    return replace(
        inputs,
        attributes_BAD=torch.cat([before_BAD, vectors_BD.unsqueeze(1), behind_BAD], dim=1),
        sequences=expand_sequences(inputs.sequences),
    )


def flagged_shapes(shapes: InputShapes) -> InputShapes:
    """Returns the shapes of inputs with the feature of :func:`with_virtual_flag`."""
    return replace(shapes, num_numeric=shapes.num_numeric + 1)


def with_virtual_flag(inputs: RankingInputs, place: int) -> RankingInputs:
    """Returns the inputs with one more numeric feature, 1 where the behaviours are virtual, else 0.

    Args:
        inputs: with at least one sequence; virtual behaviours fill all of a row's sequences.
        place: its index among the numeric features.
    """
    is_virtual_B = next(iter(inputs.sequences.values())).is_virtual_B
    before_BN, behind_BN = inputs.numeric_BN[:, :place], inputs.numeric_BN[:, place:]
    flag_B1 = is_virtual_B.to(inputs.numeric_BN.dtype).unsqueeze(1)
    return replace(inputs, numeric_BN=torch.cat([before_BN, flag_B1, behind_BN], dim=1))


@dataclass
class RankingOutput:
    """Output of a ranking tower; a tower with nothing but logits may return the bare tensor."""

    logits_B: Tensor
    """Logits of the click probability."""
    auxiliary: dict[str, tuple[Tensor, Tensor, float]] = field(default_factory=dict)
    """Loss name -> (loss of each row [B], weight of each row in the mean [B], weight of the loss in
    the sum)."""
    representation_BR: Tensor | None = None
    """The tower's last hidden layer, for the heads of further tasks; as wide as the tower's
    ``representation_dim``."""
    vectors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Sequence -> the users' vectors [U, D] and the rows' item vectors [B, D], whose dot product is
    the tower's relevance, for retrieval by nearest neighbours. ``output_specs`` of the tower
    declares them."""

    @staticmethod
    def wrap(returned: "Tensor | RankingOutput") -> "RankingOutput":
        """Wraps the bare logits of a tower; passes a RankingOutput on.

        Args:
            returned: what a tower returned; bare logits are [B].
        """
        return returned if isinstance(returned, RankingOutput) else RankingOutput(returned)

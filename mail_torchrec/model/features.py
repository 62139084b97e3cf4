"""Assembly of tower inputs: fields stacked, sequences padded, action embeddings joined to items.

Shape letters as in ``towers/inputs.py``; ``S`` stored columns of a table, its dimension and
possibly a first-order weight behind it; ``M`` numeric user attributes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Actions, Group, Schema
from mail_torchrec.towers.inputs import (
    CandidateInputs,
    InputShapes,
    RankingInputs,
    SequenceShape,
)
from mail_torchrec.towers.layers.sequences import BehaviourSequence, MatchInputs


def input_shapes(schema: Schema, num_rows: dict[str, int], *, has_match: bool) -> InputShapes:
    """Derives the static sizes of the tower inputs.

    Args:
        schema: columns and tables.
        num_rows: table -> rows.
        has_match: whether batches hold inputs of a match loss.
    """

    def size(group: Group) -> tuple[int, int]:
        names = schema.fields(group)
        return len(names), schema.table_dim(names[0]) if names else 0

    num_attributes, attribute_dim = size(Group.ATTRIBUTE)
    num_context, context_dim = size(Group.CONTEXT)
    num_items, item_dim = size(Group.ITEM)
    return InputShapes(
        num_attributes=num_attributes,
        attribute_dim=attribute_dim,
        num_context=num_context,
        context_dim=context_dim,
        num_items=num_items,
        item_dim=item_dim,
        num_numeric=len(schema.numeric()),
        sequences={name: _sequence_shape(schema, name, num_rows) for name in schema.sequences},
        has_match=has_match,
    )


def _sequence_shape(schema: Schema, name: str, num_rows: dict[str, int]) -> SequenceShape:
    action = schema.action_of(name)
    return SequenceShape(
        max_length=schema.columns[name].max_length,
        dim=schema.behaviour_dim(name),
        num_actions=num_rows[schema.table_of(action)] if action else 0,
        match_dim=schema.table_dim(name),
    )


@dataclass
class SequenceEmbeddings:
    """Looked-up vectors of one behaviour sequence, once a user, zeros behind its length."""

    values_UTS: Tensor
    """Stored vectors of the items."""
    lengths_U: Tensor
    """Number of behaviours (int64)."""
    actions_UT: Tensor | None = None
    """Rows of the action table, 0 behind a user's length; None where there are no actions."""
    actions_UTS: Tensor | None = None
    """Stored vectors of the actions."""


@dataclass
class FeatureEmbeddings:
    """Looked-up vectors of a batch by column, those of user-side columns once a user."""

    fields: dict[str, Tensor]
    """Column -> one stored vector a row or user, [B, S] or [U, S]."""
    sequences: dict[str, SequenceEmbeddings]
    """Column of the behaviour sequence -> its vectors."""
    match: dict[str, MatchInputs]
    """Column of the behaviour sequence -> inputs of its match loss."""


@dataclass(frozen=True)
class InputAssembler:
    """Assembles :class:`RankingInputs` from looked-up vectors."""

    schema: Schema
    feature_tables: FeatureTables

    def user_inputs(self, embeddings: FeatureEmbeddings, numeric_UM: Tensor) -> RankingInputs:
        """Assembles the user side: attributes and real behaviours, no context and no items.

        Args:
            embeddings: looked-up vectors.
            numeric_UM: numeric attributes.
        """
        none_U = numeric_UM[:, :0]
        return RankingInputs(
            self.stack_fields(Group.ATTRIBUTE, embeddings.fields, len(numeric_UM)),
            none_U.unsqueeze(2),
            none_U.unsqueeze(2),
            numeric_UM,
            {
                name: self.behaviour_sequence(name, stored, none_U)
                for name, stored in embeddings.sequences.items()
            },
            self.first_order_sum(embeddings.fields, Group.ATTRIBUTE),
        )

    def candidate_inputs(
        self, embeddings: FeatureEmbeddings, numeric_BN: Tensor, inverse_indices_B: Tensor | None
    ) -> CandidateInputs:
        """Assembles the candidate side: context, items and targets of each row.

        Args:
            embeddings: looked-up vectors.
            numeric_BN: all numeric features.
            inverse_indices_B: the place of each row's user; None where rows share none.
        """
        fields = embeddings.fields
        return CandidateInputs(
            self.stack_fields(Group.CONTEXT, fields, len(numeric_BN)),
            self.stack_fields(Group.ITEM, fields, len(numeric_BN)),
            numeric_BN,
            {name: self.target_embedding(name, fields) for name in embeddings.sequences},
            embeddings.match,
            self.first_order_sum(fields, Group.CONTEXT, Group.ITEM),
            inverse_indices_B,
        )

    def stack_fields(self, group: Group, fields: dict[str, Tensor], num_rows: int) -> Tensor:
        """Stacks the fields of a group, [num_rows, fields, D], or [num_rows, 0, 0] without any.

        Args:
            group: attributes, context or items.
            fields: column -> stored vectors [num_rows, S].
            num_rows: rows or users.
        """
        if not (names := self.schema.fields(group)):
            return next(iter(fields.values())).new_zeros(num_rows, 0, 0)
        return torch.stack([self._embedding(name, fields[name]) for name in names], dim=1)

    def behaviour_sequence(
        self, name: str, stored: SequenceEmbeddings, target_BD: Tensor
    ) -> BehaviourSequence:
        """Joins the items and actions of a sequence to behaviour vectors.

        Args:
            name: column of the sequence.
            stored: its looked-up vectors.
            target_BD: vectors of the target items.
        """
        values_UTD, actions_UT = self._embedding(name, stored.values_UTS), stored.actions_UT
        if actions_UT is None:
            shape, device = values_UTD.shape[:2], values_UTD.device
            actions_UT = torch.zeros(shape, dtype=torch.int64, device=device)
        elif stored.actions_UTS is not None and (action := self.schema.action_of(name)) is not None:
            actions_UTD = self._embedding(action, stored.actions_UTS)
            values_UTD = _with_actions(values_UTD, actions_UTD, self.schema.actions)
        is_virtual_U = torch.zeros_like(stored.lengths_U, dtype=torch.bool)
        return BehaviourSequence(values_UTD, stored.lengths_U, actions_UT, target_BD, is_virtual_U)

    def target_embedding(self, sequence: str, fields: dict[str, Tensor]) -> Tensor:
        """Returns the target items' vectors [B, D], as wide as the behaviours.

        A target has no action: where action embeddings are concatenated, zeros stand for it.

        Args:
            sequence: column of the sequence.
            fields: column -> stored vectors [B, S].
        """
        target = self.schema.target_of(sequence)
        target_BD = self._embedding(target, fields[target])
        num_zeros = self.schema.behaviour_dim(sequence) - target_BD.shape[1]
        return nn.functional.pad(target_BD, (0, num_zeros))

    def first_order_sum(self, fields: dict[str, Tensor], *groups: Group) -> Tensor | None:
        """Sums the first-order weights [B] of the fields of some groups.

        They stand in the column behind each vector; None where the tables do not store them.

        Args:
            fields: column -> stored vectors [B, S].
            groups: whose fields count.
        """
        names = [
            name
            for name in (*self.schema.pooled, *self.schema.unpooled_scalars)
            if name in self.schema.names(*groups)
        ]
        if not self.feature_tables.first_order or not names:
            return None
        return torch.stack([fields[name][:, self.schema.table_dim(name)] for name in names]).sum(0)

    def numeric_attributes(self, numeric_BN: Tensor) -> Tensor:
        """Returns the numeric features that are user attributes [B, M], which stand first."""
        return numeric_BN[:, : len(self.schema.numeric(Group.ATTRIBUTE))]

    def _embedding(self, name: str, stored: Tensor) -> Tensor:
        """Cuts stored vectors [..., S] to the dimension of their table."""
        dim = self.schema.table_dim(name)
        return stored if stored.shape[-1] == dim else stored[..., :dim]


def _with_actions(values_BTD: Tensor, actions_BTD: Tensor, how: Actions) -> Tensor:
    if how is Actions.PRODUCT:
        return values_BTD * actions_BTD
    return torch.cat([values_BTD, actions_BTD], dim=2) if how is Actions.CONCAT else values_BTD

"""Assembly of tower inputs: fields stacked, sequences padded, action embeddings joined to items.

Shape letters as in ``towers/inputs.py``; ``S`` stored columns of a table, its dimension and
possibly a first-order weight behind it; ``M`` numeric user attributes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.data.schema.sequences import Join
from mail_torchrec.model.projections import Projections
from mail_torchrec.towers.inputs import (
    CandidateInputs,
    InputShapes,
    RankingInputs,
    SequenceShape,
)
from mail_torchrec.towers.layers.sequences import BehaviourSequence, MatchInputs

_JOINS: dict[Join, Callable[[Tensor, Tensor], Tensor]] = {
    Join.CONCAT: lambda one, other: torch.cat([one, other], dim=one.dim() - 1),
    Join.SUM: torch.add,
    Join.PRODUCT: torch.mul,
}


def input_shapes(schema: Schema, num_rows: dict[str, int], *, has_match: bool) -> InputShapes:
    """Derives the static sizes of the tower inputs.

    Args:
        schema: columns and tables.
        num_rows: table -> rows.
        has_match: whether batches hold inputs of a match loss.
    """

    def size(group: Group) -> tuple[int, int]:
        num = len(schema.fields(group)) + len(schema.vectors(group))
        return num, schema.field_dim(group) if num else 0

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
        sequences={
            name: _sequence_shape(schema, name, num_rows, has_match=has_match)
            for name in schema.sequences
        },
        has_match=has_match,
        num_numeric_attributes=len(schema.numeric(Group.ATTRIBUTE)),
        num_numeric_items=len(schema.numeric(Group.ITEM)),
    )


def _sequence_shape(
    schema: Schema, name: str, num_rows: dict[str, int], *, has_match: bool
) -> SequenceShape:
    action, dim = schema.action_of(name), schema.behaviour_dim(name)
    return SequenceShape(
        max_length=schema.columns[name].max_length,
        dim=dim,
        num_actions=num_rows[schema.table_of(action)] if action else 0,
        match_dim=schema.table_dim(schema.match_column(name)) if has_match else dim,
    )


@dataclass
class SequenceEmbeddings:
    """Looked-up vectors of one behaviour sequence, once a user, zeros behind its length."""

    parts: dict[str, Tensor]
    """Column of each joined part -> its stored vectors [U, T, S], those of the items first."""
    lengths_U: Tensor
    """Number of behaviours (int64)."""
    actions_UT: Tensor | None = None
    """Rows of the action table, 0 behind a user's length; None where there are no actions."""
    num_behaviours: int | None = None
    """Behaviours of all users together; None where the host does not know it."""
    num_row_behaviours: int | None = None
    """Behaviours of all rows together, those of a user counted in each of the user's rows."""
    fixes_positions: bool = False
    """As :attr:`BehaviourSequence.fixes_positions`."""


@dataclass
class FeatureEmbeddings:
    """Looked-up vectors of a batch by column, those of user-side columns once a user."""

    fields: dict[str, Tensor]
    """Column -> one stored vector a row or user, [B, S] or [U, S]; of vector columns the projected
    vectors [B, D] or [U, D]."""
    sequences: dict[str, SequenceEmbeddings]
    """Column of the behaviour sequence -> its vectors."""
    match: dict[str, MatchInputs]
    """Column of the behaviour sequence -> inputs of its match loss."""


@dataclass(frozen=True)
class InputAssembler:
    """Assembles :class:`RankingInputs` from looked-up vectors."""

    schema: Schema
    feature_tables: FeatureTables
    projections: Projections

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

        Those of ids come first, those of vector columns behind them.

        Args:
            group: attributes, context or items.
            fields: column -> stored vectors [num_rows, S], or projected ones [num_rows, D].
            num_rows: rows or users.
        """
        stacked = [
            self.projections.field(name, self._embedding(name, fields[name]))
            for name in self.schema.fields(group)
        ]
        stacked += [fields[name] for name in self.schema.vectors(group)]
        if not stacked:
            return next(iter(fields.values())).new_zeros(num_rows, 0, 0)
        return torch.stack(stacked, dim=1)

    def behaviour_sequence(
        self, name: str, stored: SequenceEmbeddings, target_BD: Tensor
    ) -> BehaviourSequence:
        """Joins the parts of a sequence to behaviour vectors.

        Args:
            name: column of the sequence.
            stored: its looked-up vectors.
            target_BD: vectors of the target items.
        """
        join, actions_UT = self.schema.join_of(name), stored.actions_UT
        vectors = [
            self.projections.part(part, self._embedding(part, stored_UTS))
            for part, stored_UTS in stored.parts.items()
        ]
        values_UTD = reduce(_JOINS[join], vectors)
        if actions_UT is None:
            shape, device = values_UTD.shape[:2], values_UTD.device
            actions_UT = torch.zeros(shape, dtype=torch.int64, device=device)
        is_virtual_U = torch.zeros_like(stored.lengths_U, dtype=torch.bool)
        return BehaviourSequence(
            values_UTD,
            stored.lengths_U,
            actions_UT,
            target_BD,
            is_virtual_U,
            max_positions=stored.num_behaviours,
            max_row_positions=stored.num_row_behaviours,
            fixes_positions=stored.fixes_positions,
        )

    def target_embedding(self, sequence: str, fields: dict[str, Tensor]) -> Tensor:
        """Returns the target items' vectors [B, D], joined as the behaviours are.

        The item column on a part's table stands for the part. Parts without one, actions above all,
        are left out; in a concatenation zeros stand for them.

        Args:
            sequence: column of the sequence.
            fields: column -> stored vectors [B, S].
        """
        join, vectors, num_zeros = self.schema.join_of(sequence), [], 0
        for part in self.schema.joined_parts(sequence):
            if (target := self.schema.part_target(part)) is not None:
                part_BD = self._embedding(target, fields[target])
                part_BD = self.projections.part(part, part_BD)
                vectors.append(nn.functional.pad(part_BD, (num_zeros, 0)) if num_zeros else part_BD)
                num_zeros = 0
            elif join is Join.CONCAT:
                num_zeros += self.schema.table_dim(part)
        return nn.functional.pad(reduce(_JOINS[join], vectors), (0, num_zeros))

    def first_order_sum(self, fields: dict[str, Tensor], *groups: Group) -> Tensor | None:
        """Sums the first-order weights [B] of the fields of some groups.

        They stand in the column behind each vector; None where the tables do not store them.

        Args:
            fields: column -> stored vectors [B, S].
            groups: whose fields count.
        """
        fields_of_groups = {name for group in groups for name in self.schema.fields(group)}
        names = [
            name
            for name in (*self.schema.pooled, *self.schema.unpooled_scalars)
            if name in fields_of_groups
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

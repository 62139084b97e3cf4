"""Looked-up vectors -> the towers' inputs: fields stacked by name, sequences padded, actions joined to items."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Actions, Group, Schema
from mail_torchrec.towers.inputs import (
    BehaviourSequence,
    InputShapes,
    Match,
    RankingInputs,
    Rows,
    SequenceShape,
)


def input_shapes(schema: Schema, num_rows: dict[str, int], *, has_match: bool) -> InputShapes:
    """The static shapes of the towers' inputs."""
    fields = {group: schema.fields(group) for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)}
    dims = {group: schema.table_dim(names[0]) if names else 0 for group, names in fields.items()}
    sequences = {}
    for name in schema.sequences:
        action = schema.action_of(name)
        num_actions = num_rows[schema.table_of(action)] if action else 0
        sequences[name] = SequenceShape(
            schema.columns[name].max_length,
            schema.behaviour_dim(name),
            num_actions,
            schema.table_dim(name),
        )
    return InputShapes(
        num_attributes=len(fields[Group.ATTRIBUTE]),
        attribute_dim=dims[Group.ATTRIBUTE],
        num_context=len(fields[Group.CONTEXT]),
        context_dim=dims[Group.CONTEXT],
        num_items=len(fields[Group.ITEM]),
        item_dim=dims[Group.ITEM],
        num_numeric=len(schema.numeric()),
        sequences=sequences,
        has_match=has_match,
    )


@dataclass
class StoredSequence:
    """One sequence of each user as the tables store it, zeros behind its length; a table's dimension counts of the ``S`` stored columns."""

    values_UTS: Tensor
    lengths_U: Tensor
    actions_UT: Tensor | None = None
    """Rows of the action table, 0 behind a user's length; None where there are no actions."""
    actions_UTS: Tensor | None = None
    """Their vectors."""


@dataclass
class LookedUp:
    """Stored vectors of a batch, by column; those of the user's side once a user, which is a row where rows share none."""

    fields: dict[str, Tensor]
    """One vector a row or user, [B, S] or [U, S]."""
    sequences: dict[str, StoredSequence]
    match: dict[str, Match]


@dataclass(frozen=True)
class InputAssembler:
    """Makes :class:`RankingInputs` of looked-up vectors."""

    schema: Schema
    feature_tables: FeatureTables

    def users(self, found: LookedUp, numeric_UM: Tensor) -> RankingInputs:
        """The users' side, with the real behaviours: attributes, their numeric ones and sequences, no context and no items."""
        none_U = numeric_UM[:, :0]
        return RankingInputs(
            self.group(Group.ATTRIBUTE, found.fields, len(numeric_UM)),
            none_U.unsqueeze(2),
            none_U.unsqueeze(2),
            numeric_UM,
            {name: self.sequence(name, stored, none_U) for name, stored in found.sequences.items()},
            self.first_order(found.fields, Group.ATTRIBUTE),
        )

    def rows(self, found: LookedUp, numeric_BN: Tensor, inverse_indices_B: Tensor | None) -> Rows:
        """What rows have beside their users."""
        return Rows(
            self.group(Group.CONTEXT, found.fields, len(numeric_BN)),
            self.group(Group.ITEM, found.fields, len(numeric_BN)),
            numeric_BN,
            {name: self.target(name, found.fields) for name in found.sequences},
            found.match,
            self.first_order(found.fields, Group.CONTEXT, Group.ITEM),
            inverse_indices_B,
        )

    def group(self, group: Group, fields: dict[str, Tensor], num_rows: int) -> Tensor:
        """The fields of a group side by side, [B, F, d], or [B, 0, 0] where it has none."""
        if not (names := self.schema.fields(group)):
            return next(iter(fields.values())).new_zeros(num_rows, 0, 0)
        return torch.stack([self._narrow(name, fields[name]) for name in names], dim=1)

    def sequence(self, name: str, stored: StoredSequence, target_BD: Tensor) -> BehaviourSequence:
        """Behaviours, item and action joined."""
        values_UTD, actions_UT = self._narrow(name, stored.values_UTS), stored.actions_UT
        if actions_UT is None:
            actions_UT = torch.zeros(
                values_UTD.shape[:2], dtype=torch.int64, device=values_UTD.device
            )
        elif stored.actions_UTS is not None and (action := self.schema.action_of(name)) is not None:
            values_UTD = _with_actions(
                values_UTD, self._narrow(action, stored.actions_UTS), self.schema.actions
            )
        is_virtual_U = torch.zeros_like(stored.lengths_U, dtype=torch.bool)
        return BehaviourSequence(values_UTD, stored.lengths_U, actions_UT, target_BD, is_virtual_U)

    def target(self, sequence: str, fields: dict[str, Tensor]) -> Tensor:
        """The target item's vector [B, d], as wide as the behaviours: it has no action, which is zeros where actions stand behind items."""
        target = self.schema.target_of(sequence)
        target_BD = self._narrow(target, fields[target])
        return nn.functional.pad(
            target_BD, (0, self.schema.behaviour_dim(sequence) - target_BD.shape[1])
        )

    def first_order(self, fields: dict[str, Tensor], *groups: Group) -> Tensor | None:
        """The sum [B] of the first-order weights of these groups' fields: the column behind each vector, where the tables hold it."""
        names = [
            name
            for name in (*self.schema.pooled, *self.schema.unpooled_scalars)
            if name in self.schema.names(*groups)
        ]
        if not self.feature_tables.first_order or not names:
            return None
        return torch.stack([fields[name][:, self.schema.table_dim(name)] for name in names]).sum(0)

    def numeric_attributes(self, numeric_BN: Tensor) -> Tensor:
        """The numeric features that are user attributes: the first ones."""
        return numeric_BN[:, : len(self.schema.numeric(Group.ATTRIBUTE))]

    def _narrow(self, name: str, values: Tensor) -> Tensor:
        """The columns of a looked-up vector that its table's dimension counts (a table may store a few more)."""
        dim = self.schema.table_dim(name)
        return values if values.shape[-1] == dim else values[..., :dim]


def filled(
    sequence: BehaviourSequence, new_W: Tensor, values_WTD: Tensor, lengths_W: Tensor
) -> BehaviourSequence:
    """A sequence with virtual behaviours in the rows ``new_W``."""
    return replace(
        sequence,
        values_BTD=sequence.values_BTD.index_copy(
            0, new_W, values_WTD.to(sequence.values_BTD.dtype)
        ),
        lengths_B=sequence.lengths_B.index_copy(0, new_W, lengths_W.to(sequence.lengths_B.dtype)),
        actions_BT=sequence.actions_BT.index_fill(0, new_W, 0),
        is_virtual_B=sequence.is_virtual_B.index_fill(0, new_W, True),
    )


def emptied(inputs: RankingInputs, rows_B: Tensor) -> RankingInputs:
    """The inputs without the behaviours of the rows ``rows_B`` (bool)."""
    sequences = {
        name: replace(
            sequence,
            values_BTD=sequence.values_BTD.masked_fill(rows_B[:, None, None], 0.0),
            lengths_B=sequence.lengths_B.masked_fill(rows_B, 0),
            actions_BT=sequence.actions_BT.masked_fill(rows_B[:, None], 0),
        )
        for name, sequence in inputs.sequences.items()
    }
    return replace(inputs, sequences=sequences)


def user_id_field(schema: Schema, name: str | None) -> int:
    """The place of the user's id among the attributes.

    Args:
        schema: columns and tables.
        name: its column; None finds the one that reads the group key's column of the files.

    Raises:
        ValueError: it is no attribute of one id, there is none or more than one, or no other
            attribute.
    """
    key, attributes = schema.file_column(schema.group_key), schema.fields(Group.ATTRIBUTE)
    ids = [field for field in attributes if field in schema.scalars]
    if name is not None and name not in ids:
        raise ValueError(
            f"model.baseline.field should name an attribute column of one id ({', '.join(ids)}), "
            f"received '{name}'"
        )
    found = (
        [name] if name is not None else [field for field in ids if schema.file_column(field) == key]
    )
    if len(found) != 1:
        raise ValueError(
            "model.baseline: meta_emb needs the user's id as an attribute, and "
            f"{found or 'no column'} of that group reads '{key}' as the "
            f"group key does; add schema.columns.{key}={{group: attribute}} ('column: {key}' "
            "under another name), or name it by 'field'"
        )
    if len(attributes) + len(schema.numeric(Group.ATTRIBUTE)) < 2:
        raise ValueError(
            f"model.baseline: meta_emb makes the id of the other attributes, and '{found[0]}' is "
            "the only one; add others"
        )
    return attributes.index(found[0])


def without_negatives(rows: Rows) -> Rows:
    """The rows as outside training: a tower that has a match loss computes none."""
    matches = {
        name: replace(
            match,
            negatives_KD=match.negatives_KD[:0],
            negative_ids_K=match.negative_ids_K[:0],
            negative_log_q_K=match.negative_log_q_K[:0],
        )
        for name, match in rows.matches.items()
    }
    return replace(rows, matches=matches)


def _with_actions(values_BTD: Tensor, actions_BTD: Tensor, how: Actions) -> Tensor:
    if how is Actions.PRODUCT:
        return values_BTD * actions_BTD
    return torch.cat([values_BTD, actions_BTD], dim=2) if how is Actions.CONCAT else values_BTD

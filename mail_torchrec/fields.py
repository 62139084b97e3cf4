"""Looked-up vectors -> the towers' inputs: fields stacked by name, sequences padded, actions joined to items."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from mail_torchrec.data.batch import Batch
from mail_torchrec.data.lookups import Lookups
from mail_torchrec.data.schema import Actions, Group, Schema
from mail_torchrec.towers.inputs import BehaviourSequence, InputShapes, Match, RankingInputs, SequenceShape, position_mask


def input_shapes(schema: Schema, num_rows: dict[str, int], *, has_match: bool) -> InputShapes:
    """The static shapes of the towers' inputs."""
    fields = {group: schema.fields(group) for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)}
    dims = {group: schema.table_dim(names[0]) if names else 0 for group, names in fields.items()}
    sequences = {}
    for name in schema.sequences:
        action = schema.action_of(name)
        num_actions = num_rows[schema.table_of(action)] if action else 0
        sequences[name] = SequenceShape(schema.columns[name].max_length, schema.behaviour_dim(name), num_actions, schema.table_dim(name))
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


@dataclass(frozen=True)
class InputAssembler:
    """Makes :class:`RankingInputs` of what the two collections returned.

    Fields are found by name: the column order of a ``KeyedTensor`` depends on the sharding plan.
    """

    schema: Schema
    lookups: Lookups

    def __call__(self, batch: Batch, pooled: KeyedTensor, unpooled: dict[str, JaggedTensor]) -> RankingInputs:
        """The ranking tower's inputs, with the real behaviours."""
        stored = self._means(batch, pooled) | {name: unpooled[name].values() for name in self.schema.unpooled_scalars}
        fields = {name: self._narrow(name, values) for name, values in stored.items()}
        attributes, context, items = (
            _stack(fields, self.schema.fields(group), len(batch)) for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
        )
        sequences = {name: self._sequence(name, batch, unpooled) for name in self.schema.sequences}
        return RankingInputs(attributes, context, items, batch.numeric_BN, sequences, self._first_order(stored))

    def _means(self, batch: Batch, pooled: KeyedTensor) -> dict[str, Tensor]:
        """The mean of each list, so that a long one does not outweigh a short one.

        Not by the collection: where it has row-wise tables beside others, TorchRec divides the others' means once more by the lengths.
        """
        found: dict[str, Tensor] = pooled.to_dict()
        lists = [name for name in self.schema.lists if name in found]
        return found | {name: found[name] / batch.pooled[name].lengths().clamp(min=1)[:, None] for name in lists}

    def _narrow(self, name: str, values: Tensor) -> Tensor:
        """The columns of a looked-up vector that its table's dimension counts (a table may store a few more)."""
        return values[..., : self.schema.table_dim(name)]

    def _first_order(self, stored: dict[str, Tensor]) -> Tensor | None:
        """The sum of the fields' first-order weights: the column behind each vector, where the tables hold it."""
        if not self.lookups.first_order:
            return None
        names = [*self.schema.pooled, *self.schema.unpooled_scalars]
        return torch.stack([stored[name][:, self.schema.table_dim(name)] for name in names]).sum(0)

    def numeric_attributes(self, inputs: RankingInputs) -> Tensor:
        """The columns of ``numeric_BN`` that are user attributes: the first ones."""
        return inputs.numeric_BN[:, : len(self.schema.numeric(Group.ATTRIBUTE))]

    def _sequence(self, name: str, batch: Batch, unpooled: dict[str, JaggedTensor]) -> BehaviourSequence:
        length = self.schema.columns[name].max_length
        lengths_B = batch.unpooled[name].lengths()
        values_BTD = self._narrow(name, unpooled[name].to_padded_dense(length))
        target = self.schema.target_of(name)
        target_BD = self._narrow(target, unpooled[target].values())
        actions_BT = torch.zeros(values_BTD.shape[:2], dtype=torch.int64, device=values_BTD.device)
        if (action := self.schema.action_of(name)) is not None:
            actions_BT = actions_BT.masked_scatter(position_mask(lengths_B, length), batch.unpooled[action].values())
            action_BTD = self._narrow(action, unpooled[action].to_padded_dense(length))
            values_BTD, target_BD = _with_actions(values_BTD, target_BD, action_BTD, self.schema.actions)
        match = self._match(name, batch, unpooled) if name in self.lookups.match else None
        return BehaviourSequence(values_BTD, lengths_B, actions_BT, target_BD, torch.zeros_like(batch.is_new_B), match)

    def _match(self, name: str, batch: Batch, unpooled: dict[str, JaggedTensor]) -> Match:
        keys, ids = self.lookups.match[name], batch.match[name]
        target, last, negatives = (self._narrow(name, unpooled[key].values()) for key in (keys.target, keys.last, keys.negatives))
        return Match(target, last, negatives, ids.last_B, ids.negatives_K, ids.last_log_q_B, ids.negatives_log_q_K)


def filled(sequence: BehaviourSequence, new_W: Tensor, values_WTD: Tensor, lengths_W: Tensor) -> BehaviourSequence:
    """A sequence with virtual behaviours in the rows ``new_W``."""
    return replace(
        sequence,
        values_BTD=sequence.values_BTD.index_copy(0, new_W, values_WTD.to(sequence.values_BTD.dtype)),
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
        ValueError: it is no attribute of one id, there is none or more than one, or no other attribute.
    """
    key, attributes = schema.file_column(schema.group_key), schema.fields(Group.ATTRIBUTE)
    ids = [field for field in attributes if field in schema.scalars]
    if name is not None and name not in ids:
        raise ValueError(f"model.baseline.field should name an attribute column of one id ({', '.join(ids)}), received '{name}'")
    found = [name] if name is not None else [field for field in ids if schema.file_column(field) == key]
    if len(found) != 1:
        raise ValueError(
            f"model.baseline: meta_emb needs the user's id as an attribute, and {found or 'no column'} of that group reads '{key}' as the "
            f"group key does; add schema.columns.{key}={{group: attribute}} ('column: {key}' under another name), or name it by 'field'"
        )
    if len(attributes) + len(schema.numeric(Group.ATTRIBUTE)) < 2:
        raise ValueError(f"model.baseline: meta_emb makes the id of the other attributes, and '{found[0]}' is the only one; add others")
    return attributes.index(found[0])


def without_negatives(inputs: RankingInputs) -> RankingInputs:
    """The inputs as outside training: a tower that has a match loss computes none."""
    sequences = dict(inputs.sequences)
    for name, sequence in inputs.sequences.items():
        if (match := sequence.match) is not None:
            none = replace(
                match,
                negatives_KD=match.negatives_KD[:0],
                negative_ids_K=match.negative_ids_K[:0],
                negative_log_q_K=match.negative_log_q_K[:0],
            )
            sequences[name] = replace(sequence, match=none)
    return replace(inputs, sequences=sequences)


def _stack(fields: dict[str, Tensor], names: list[str], num_rows: int) -> Tensor:
    """[B, len(names), d], or [B, 0, 0] where a group has no field."""
    if not names:
        return next(iter(fields.values())).new_zeros(num_rows, 0, 0)
    return torch.stack([fields[name] for name in names], dim=1)


def _with_actions(values_BTD: Tensor, target_BD: Tensor, actions_BTD: Tensor, how: Actions) -> tuple[Tensor, Tensor]:
    """Behaviour vectors and a target of the same width; a target has no action, which is zeros where actions stand behind items."""
    if how is Actions.PRODUCT:
        return values_BTD * actions_BTD, target_BD
    if how is Actions.CONCAT:
        return torch.cat([values_BTD, actions_BTD], dim=2), nn.functional.pad(target_BD, (0, actions_BTD.shape[2]))
    return values_BTD, target_BD

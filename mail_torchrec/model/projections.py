"""Projection of narrow tables' vectors to the width of their group or sequence.

Shapes: ``S`` elements of a table's vectors, ``D`` width of the group or of the behaviours.
"""

from torch import Tensor, nn

from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.data.schema.sequences import Join
from mail_torchrec.model.vector_fields import module_key


class Projections(nn.Module):
    """One dense layer without bias for each column of a table that is narrower than the others.

    Fields are projected to the widest of their group, and the parts of a sequence that are added or
    multiplied to the widest of them; the candidate's part goes through the same layer as the
    behaviours'. The layers are trained with the ranking tower. Where widths are equal there is
    none.

    Args:
        schema: columns and tables.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        field_dims = {
            name: schema.field_dim(group)
            for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
            for name in schema.fields(group)
        }
        part_dims = {
            part: schema.behaviour_dim(sequence)
            for sequence in schema.sequences
            for part in schema.joined_parts(sequence)
            if schema.join_of(sequence) is not Join.CONCAT
        }
        self.fields, self.parts = _layers(schema, field_dims), _layers(schema, part_dims)

    def field(self, name: str, vectors: Tensor) -> Tensor:
        """Projects the vectors [..., S] of a field to its group's width, [..., D]."""
        return _projected(self.fields, name, vectors)

    def part(self, name: str, vectors: Tensor) -> Tensor:
        """Projects the vectors [..., S] of a sequence's part to the behaviours' width, [..., D]."""
        return _projected(self.parts, name, vectors)


def _layers(schema: Schema, dims: dict[str, int]) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            module_key(name): nn.Linear(schema.table_dim(name), dim, bias=False)
            for name, dim in dims.items()
            if schema.table_dim(name) != dim
        }
    )


def _projected(layers: nn.ModuleDict, name: str, vectors: Tensor) -> Tensor:
    key = module_key(name)
    if key not in layers:
        return vectors
    projected: Tensor = layers[key](vectors)
    return projected

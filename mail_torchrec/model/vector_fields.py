"""Vector columns as fields: each is projected to the dimension of its group's other fields.

Shapes: ``R`` rows or users, ``E`` elements of a vector, ``D`` dimension of a field.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from mail_torchrec.data.schema.schema import Schema


class VectorFields(nn.Module):
    """One dense layer for each vector column, trained with the ranking tower.

    A null is a vector of zeros, the mean of the training data, and becomes the layer's bias.

    Args:
        schema: columns and tables.
        vector_dims: number of elements of each vector column.
    """

    def __init__(self, schema: Schema, vector_dims: Mapping[str, int]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                module_key(name): nn.Linear(
                    vector_dims[name], schema.field_dim(schema.columns[name].group)
                )
                for name in schema.vectors()
            }
        )

    def forward(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Projects the vectors of some columns.

        Args:
            vectors: column -> standardised vectors [R, E].

        Returns:
            Column -> fields [R, D].
        """
        return {
            name: self.layers[module_key(name)](vectors_RE) for name, vectors_RE in vectors.items()
        }


def module_key(name: str) -> str:
    """Returns the key of a column or table in a ModuleDict, part of its parameters' names.

    The underscore behind it keeps it from being one of ModuleDict's own attributes. The tracer of
    exports writes source code with the names in it, so that quotes and the like become code points.
    """
    return re.sub(r"[^0-9A-Za-z_]", lambda found: f"-{ord(found[0]):x}-", name) + "_"

"""Dimension of a table: given, or chosen by its number of rows."""

import math
from typing import Annotated, Any

from pydantic import (
    Field,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
)
from pydantic.functional_validators import WrapValidator

AUTO_DIM = 0
"""Stands for `dim: auto` until the rows of the tables are known (``Schema.with_dims``)."""
_COLUMN_MULTIPLE = 4  # FBGEMM's kernels move vectors of 4 columns


def _number_or_auto(value: Any, validate: ValidatorFunctionWrapHandler) -> int:
    if value == "auto":
        return AUTO_DIM
    try:
        number: int = validate(value)
    except ValidationError:
        message = f"should be a whole number of at least 1, or 'auto', received {value!r}"
        raise ValueError(message) from None
    return number


Dim = Annotated[
    int,
    Field(ge=1),
    WrapValidator(_number_or_auto),
    PlainSerializer(lambda dim: "auto" if dim == AUTO_DIM else dim),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}),
]
"""Dimension of a table: a number, or `auto`."""


def auto_dim(num_rows: int, most: int | None) -> int:
    """Chooses a dimension by ``6 * rows ** 0.25`` (Wang et al., ADKDD 2017), a multiple of 4.

    Args:
        num_rows: of the table, those for unknown and null ids included.
        most: the greatest dimension; None for no bound.
    """
    dim = _COLUMN_MULTIPLE * round(6 * math.sqrt(math.sqrt(num_rows)) / _COLUMN_MULTIPLE)
    return dim if most is None else min(dim, most)

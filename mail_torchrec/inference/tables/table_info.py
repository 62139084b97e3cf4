"""Description of an exported model's tables and of the encoding of its numbers."""

from typing import Literal

from pydantic import Field

from mail_torchrec.data.schema.columns import IdPolicyName
from mail_torchrec.settings import Settings
from mail_torchrec.utils.safe_paths import PlainPath


class SpareRows(Settings):
    """Rows of a table's files beyond those that a version uses, and where its own rows are.

    Other versions share the files and have rows of their own in them.
    """

    capacity: int = Field(ge=1)
    """Rows of each file of the table."""
    positions: PlainPath
    """File with the place of each row in those files, one integer a row (int32 or int64, as its
    name says), filled up to ``capacity``."""


class TableInfo(Settings):
    """Id policy, size and files of one embedding table."""

    ids: IdPolicyName
    rows: int
    dim: int
    vocabulary: PlainPath | None = None
    """File of the values in the order of their rows; None for hashed ids."""
    salt: str | None = None
    """Salt of the hash; None for a vocabulary."""
    edges: list[float] | None = Field(default=None, exclude_if=lambda edges: edges is None)
    """Edges of the buckets: a number has row ``first_row`` plus the number of edges that it
    reaches; None for other ids."""
    fallback_rows: int | None = Field(default=None, exclude_if=lambda rows: rows is None)
    """Rows, from ``first_row`` on, that ids without a row of their own share by the hash; None for
    other ids."""
    files: dict[str, PlainPath]
    """File of each part of an element: ``weight`` (in int8 the element is ``scale * weight +
    offset``), and ``first_order`` where it is stored apart."""
    spare: SpareRows | None = Field(default=None, exclude_if=lambda spare: spare is None)
    """Spare rows; None where the files hold the rows in order, and nothing else. The size and
    checksum of a file with spare rows are those of the table's rows in order."""


class NumericInfo(Settings):
    """Encoding of a numeric column: ``(transform(value) - mean) / deviation``, 0 for a null."""

    transform: Literal["none", "log"]
    mean: float
    deviation: float


class VectorInfo(Settings):
    """Encoding of a column of vectors: ``(element - mean) / deviation`` of each, 0 for a null."""

    dim: int
    """Number of elements."""
    scales: PlainPath
    """JSON file with the ``mean`` and ``deviation`` of each element, by column."""

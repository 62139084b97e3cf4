"""Description of one output of a model, shared by towers, export, servers and vectors."""

from typing import Literal

from mail_torchrec.settings import Settings

Axis = Literal["users", "candidates"]
Role = Literal["probability", "expected_value", "virtual_behaviours", "user_vector", "item_vector"]
SCORES: tuple[Role, ...] = ("probability", "expected_value")
"""Roles of the outputs that a request is answered with unless it names others."""


class OutputSpec(Settings):
    """One output tensor: towers declare it, everything behind the export reads it.

    Its shape is ``[axis, *size]``. Nobody takes a meaning from the name: consumers select by
    ``role`` and ``column``.
    """

    name: str
    """Name in the exported graph and in every protocol."""
    axis: Axis
    """What the first dimension counts."""
    size: tuple[int, ...] = ()
    """Dimensions behind the first."""
    dtype: Literal["float32"] = "float32"
    """Element type."""
    role: Role
    """Kind of value, by which consumers select."""
    column: str | None = None
    """The behaviour sequence that the output belongs to; None for scores."""
    meaning: str
    """One sentence for people: OpenAPI, model metadata and the manifest show it."""

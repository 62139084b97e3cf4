"""Behaviour sequences with side information: aligned lists that make one vector a behaviour."""

from collections.abc import Mapping
from difflib import get_close_matches
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from mail_torchrec.data.schema.columns import Column, Group, Kind, TimePart
from mail_torchrec.settings import Settings


class Join(StrEnum):
    """Combination of the parts' vectors: side by side, added, or multiplied elementwise."""

    CONCAT = "concat"
    SUM = "sum"
    PRODUCT = "product"


class PartSettings(Settings):
    """One part of a sequence: an aligned list of the files, and its table."""

    column: str | None = None
    """Column of the files; by default `SEQUENCE_PART`. Instead of the section the column alone may
    be given."""
    table: str | None = None
    """Embedding table; by default one with the part's name. An item column on the same table
    stands for this part in the candidate's vector."""
    age_of: str | None = None
    """Column of the files with a list of times, whose ages at the time in `column`, the
    impression's, are the values: the gaps to the impression. A table with `ids: buckets` takes
    them."""
    age_unit: Literal["second", "minute", "hour", "day"] = "second"
    """Unit of the ages."""
    part: TimePart | None = None
    """Part of the times in `column` that is the value, as for columns: `hour`, `weekday`, ..."""
    time_unit: Literal["second", "millisecond", "microsecond", "day"] | None = None
    """Unit, from 1970 in UTC, of times that are integers."""
    zone: str | None = None
    """Time zone of `part`; by default UTC."""
    joined: bool = True
    """Whether the part's vector is joined to the others. `false` suits an `action` that the tower
    DMR reads on its own, as its authors do."""


def _part_of_text(value: object) -> object:
    if not isinstance(value, str | dict | PartSettings):
        raise ValueError(
            "should be a part, a column of the files or a section, or one of the sequence's own "
            f"keys join, max_length, padding and match, received {value!r}"
        )
    return {"column": value} if isinstance(value, str) else value


Part = Annotated[
    PartSettings, BeforeValidator(_part_of_text, json_schema_input_type=str | PartSettings)
]
"""Part of a sequence: a section, or the name of its column in the files."""


class SequenceSettings(Settings, extra="allow"):
    """One behaviour sequence: its parts by name, the main one first, and how they are joined.

    A part named `action` is what was done with each item; DMR embeds it once more on its own.
    """

    __pydantic_extra__: dict[str, Part] = Field(init=False)
    join: Join = Join.CONCAT
    """Combination of the parts' vectors to one behaviour vector: `concat` (side by side), `sum` or
    `product` (elementwise)."""
    max_length: int = Field(default=50, ge=1, le=2**31 - 1)
    """Maximum number of behaviours (the T of the paper): only the newest are kept."""
    padding: int | str | None = None
    """Value of the first part that fills up its lists to one length. Its entries are dropped, and
    with them those of the other parts."""
    match: str | None = None
    """Part that the match loss of a tower is about, by name: its table gets the output-side table
    V'. By default the first part."""

    @property
    def parts(self) -> Mapping[str, PartSettings]:
        """Parts by name, the main one first."""
        return self.__pydantic_extra__


class PartColumn(Column):
    """Behaviour column of one part of a sequence that section ``schema.sequences`` declares."""

    sequence: str
    """Name of the sequence, and of the column of its first part."""
    sequence_part: str
    """Name of the part in the sequence."""


def with_part_columns(
    columns: Mapping[str, Column], sequences: Mapping[str, SequenceSettings]
) -> dict[str, Column]:
    """Appends the columns of all parts: ``SEQUENCE`` for the first, ``SEQUENCE_PART`` for others.

    Args:
        columns: of the schema.
        sequences: declared sequences by name.

    Raises:
        ValueError: a sequence has no part, or the name of one of its columns is taken.
    """
    columns = {name: col for name, col in columns.items() if not isinstance(col, PartColumn)}
    for sequence, settings in sequences.items():
        if not settings.parts:
            raise ValueError(
                f"schema.sequences.{sequence}: should have a part at least, received none; name "
                f"its lists, {{item: {sequence}_item}} for example"
            )
        _check_part_names(sequence, settings)
        for index, (part, given) in enumerate(settings.parts.items()):
            name = f"{sequence}_{part}" if index else sequence
            if name in columns:
                raise ValueError(
                    f"schema.sequences.{sequence}: its part '{part}' makes a column '{name}', and "
                    "the schema has one of that name; rename the sequence or the part"
                )
            columns[name] = PartColumn(
                group=Group.BEHAVIOUR,
                kind=Kind.LIST,
                column=given.column or f"{sequence}_{part}",
                table=given.table or part,
                max_length=settings.max_length,
                padding=None if index else settings.padding,
                action_of=sequence if index else None,
                sequence=sequence,
                sequence_part=part,
                age_of=given.age_of,
                age_unit=given.age_unit,
                part=given.part,
                time_unit=given.time_unit,
                zone=given.zone,
            )
    return columns


def _check_part_names(sequence: str, settings: SequenceSettings) -> None:
    """Checks that no part is a mistyped key of the sequence's own."""
    texts: dict[str, set[str]] = {"join": set(Join), "match": set(settings.parts)}
    for part, given in settings.parts.items():
        [key] = get_close_matches(part, SequenceSettings.model_fields, 1, 0.5) or [""]
        is_number = given.column is not None and not given.column.strip("-0123456789")
        if (is_number and key == "padding") or given.column in texts.get(key, ()):
            raise ValueError(
                f"schema.sequences.{sequence}: '{part}: {given.column}' should be a part and its "
                f"column, or the key '{key}'; correct the name"
            )

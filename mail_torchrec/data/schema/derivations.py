"""Derived columns: crosses of columns, parts of times, and ages; what they are made of.

They are computed from raw columns of the files, or of a request, by ``data/derived``.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from mail_torchrec.data.schema.columns import Column, Group, Kind, Transform

_FEATURES = (Group.ATTRIBUTE, Group.BEHAVIOUR, Group.CONTEXT, Group.ITEM)


class InputKind(StrEnum):
    """Kind of a raw input's values."""

    ID = "id"
    TIME = "time"


class RawInput(NamedTuple):
    """Column of the files that a derived column is made of."""

    column: str
    kind: InputKind
    is_list: bool


def is_derived(column: Column) -> bool:
    """Returns whether a column is computed, and not a column of the files."""
    return column.cross is not None or column.part is not None or column.age_of is not None


def derived_name(name: str, column: Column) -> str:
    """Names the values of a derived column in tables and messages."""
    if column.cross is not None:
        return f"{' x '.join(column.cross)} (crossed)"
    source = column.column or name
    if column.age_of is not None:
        least = ", at least 0" if column.transform is Transform.LOG else ""
        return f"age of {column.age_of} at {source} in {column.age_unit}s{least}"
    assert column.part is not None
    return f"{column.part} of {source} in {column.zone or 'UTC'}"


def raw_inputs(name: str, columns: Mapping[str, Column]) -> list[RawInput]:
    """Lists the raw columns of a derived column, each once.

    Args:
        name: of the derived column.
        columns: all columns of the schema; a cross may be of columns that have a ``part``.
    """
    column = columns[name]
    is_list = column.kind is Kind.LIST
    if column.cross is not None:
        inputs = [one for part in column.cross for one in _crossed(part, columns)]
    elif column.age_of is not None:
        inputs = [
            RawInput(column.age_of, InputKind.TIME, is_list),
            RawInput(column.column or name, InputKind.TIME, False),
        ]
    else:
        inputs = [RawInput(column.column or name, InputKind.TIME, is_list)]
    return list(dict.fromkeys(inputs))


def cross_column(part: str, columns: Mapping[str, Column]) -> str:
    """Returns the name in tables of one column of a cross."""
    found = columns.get(part)
    return derived_name(part, found) if found is not None and found.part is not None else part


def _crossed(part: str, columns: Mapping[str, Column]) -> list[RawInput]:
    found = columns.get(part)
    if found is not None and found.part is not None:
        return raw_inputs(part, columns)
    return [RawInput(part, InputKind.ID, is_list=False)]


def check_derived(columns: Mapping[str, Column]) -> None:
    """Checks the derived columns of a schema.

    Raises:
        ValueError: settings that do not go together, or a user's column made of an item's.
    """
    for name, column in columns.items():
        if is_derived(column):
            _check_settings(name, column)
            _check_side(name, columns)
        elif column.zone or column.time_unit or column.age_unit != "second":
            raise ValueError(
                f"schema.columns.{name}: zone, time_unit and age_unit are for columns with 'part' "
                "or 'age_of'; drop them"
            )
    stored = {column.column or name for name, column in columns.items() if not is_derived(column)}
    made = {
        derived_name(name, column): name for name, column in columns.items() if is_derived(column)
    }
    if both := stored & made.keys():
        raise ValueError(
            f"schema.columns.{made[min(both)]}: its values are called '{min(both)}', and a column "
            "of the files is read by that name; rename that one in the files"
        )


def _check_settings(name: str, column: Column) -> None:
    where = f"schema.columns.{name}"
    given = [key for key in ("cross", "part", "age_of") if getattr(column, key) is not None]
    if len(given) > 1:
        raise ValueError(f"{where}: give one of cross, part and age_of, received {given}")
    if column.group not in _FEATURES:
        raise ValueError(
            f"{where}: {given[0]} is for attributes, behaviours, context and items, received group "
            f"'{column.group}'"
        )
    if column.cross is not None:
        _check_cross(where, column)
    elif column.part is None and column.zone is not None:
        raise ValueError(f"{where}: zone is for 'part', an age is the same in all zones; drop it")
    elif column.age_of is None and column.age_unit != "second":
        raise ValueError(f"{where}: age_unit is for 'age_of'; drop it")
    if column.zone is not None and not _is_zone(column.zone):
        raise ValueError(
            f"{where}: zone should be a time zone such as Europe/Berlin or UTC, received "
            f"'{column.zone}'"
        )


def _check_cross(where: str, column: Column) -> None:
    assert column.cross is not None
    if column.kind is not Kind.CATEGORICAL:
        raise ValueError(f"{where}: a cross has kind 'categorical', received '{column.kind}'")
    if column.column is not None or column.zone or column.time_unit:
        raise ValueError(f"{where}: a cross takes no column, zone or time_unit; drop them")
    if len(set(column.cross)) != len(column.cross) or len(column.cross) < 2:
        raise ValueError(
            f"{where}: cross should name two columns or more, each once, received {column.cross}"
        )


def _check_side(name: str, columns: Mapping[str, Column]) -> None:
    """Checks that a column of the user, its history or the context needs nothing of an item."""
    if columns[name].group is Group.ITEM:
        return
    inputs = {one.column for one in raw_inputs(name, columns)}
    sides: dict[str, set[bool]] = {}
    for other, column in columns.items():
        if not is_derived(column):
            sides.setdefault(column.column or other, set()).add(column.group is Group.ITEM)
    for source in sorted(inputs):
        if sides.get(source) == {True}:
            raise ValueError(
                f"schema.columns.{name}: '{source}' is a column of items, so what is made of it "
                f"belongs to group 'item', received group '{columns[name].group}'"
            )


def _is_zone(name: str) -> bool:
    return name in available_timezones() and bool(ZoneInfo(name))

"""Requests to a ranker, and the description of an exported model's inputs.

A request is one user and its candidates as raw values. Its encoded form has two axes, ``users``
(one a request) and ``candidates`` (of all users, each with the index of its user), so that
whatever depends on the user alone is sent, looked up and computed once. A client without torch
can import this module.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mail_torchrec.data.items.settings import NewItemSettings
from mail_torchrec.data.schema.schema import Group, Kind, Schema
from mail_torchrec.data.schema.stored_columns import StoredColumn, stored_columns
from mail_torchrec.settings import Settings

USER_OF_CANDIDATE = "candidate.user"
"""Name of the input that holds the user index of each candidate; columns have no dot in their
names."""
NEW_ITEM_OF_CANDIDATE = "candidate.new_item"
"""Name of the input that says which candidates are new items by a rule."""
_USER_GROUPS = (Group.ATTRIBUTE, Group.BEHAVIOUR, Group.CONTEXT)


class InputSpec(Settings):
    """Description of one input of an exported model."""

    name: str
    """Name of the schema's column, of a list's lengths (:func:`length_input`), or
    :data:`USER_OF_CANDIDATE`."""
    dtype: Literal["int64", "float32", "bool"]
    shape: tuple[int | str, ...]
    """Sizes; ``users``, ``candidates`` and ``COLUMN.width`` (length of the request's longest list,
    at least 1) are free."""
    column: str | None
    """Raw column that the input is made of; of a derived column, the name of its values."""
    length_of: str | None = None
    """Name of the list input whose lengths this input holds; None for every other input."""
    low: int | None = None
    """Least value; None where any finite number is valid."""
    high: int | None = None
    """Greatest value; None where any is valid, or where it depends on the request."""


@dataclass(frozen=True)
class Request:
    """One user and its candidates: raw values by the files' column names, None where missing."""

    user: Mapping[str, Any]
    """Attributes, histories (oldest first) and context; the group key is optional."""
    candidates: Sequence[Mapping[str, Any]]
    """Item columns of each candidate."""


def user_columns(schema: Schema) -> list[str]:
    """Lists the schema columns of the user and the context, in the order of the inputs."""
    return [*schema.names(*_USER_GROUPS), *([schema.new_user] if schema.new_user else [])]


def candidate_columns(schema: Schema) -> list[str]:
    """Lists the schema columns of a candidate item, in the order of the inputs."""
    return [*schema.names(Group.ITEM), *([schema.new_item] if schema.new_item else [])]


def new_item_input(schema: Schema, rule: NewItemSettings | None) -> str | None:
    """Names the input that says which candidates are new items; None where nothing says so.

    Args:
        schema: its column of new items is the input.
        rule: for new items, which the encoder of requests applies.
    """
    if schema.new_item is not None:
        return schema.new_item
    return NEW_ITEM_OF_CANDIDATE if rule is not None and rule.has_rule else None


def list_of_weights(name: str, schema: Schema) -> str:
    """Returns the list whose entries a column weighs."""
    return next(item for item, weights in schema.list_weights.items() if weights == name)


class RawColumn(NamedTuple):
    """Raw column of a request, and the schema's columns that are read or computed from it."""

    stored: StoredColumn
    readers: tuple[str, ...]


class RawColumns(NamedTuple):
    """Raw columns of a request by their names in the files."""

    user: dict[str, RawColumn]
    """Sent once: what columns of the user and the context need, and the time of an item's age."""
    candidate: dict[str, RawColumn]
    """Sent with each candidate."""


def request_columns(schema: Schema) -> RawColumns:
    """Lists the raw columns of a request.

    What a derived column of items needs is sent with the user where a column of the user has it
    too, and with each candidate otherwise.
    """
    user, candidate = _raw_columns(schema, user_columns(schema)), {}
    for name in candidate_columns(schema):
        if schema.columns[name].age_of is not None:
            stored = stored_columns(schema, name)
            now = schema.columns[name].column or name
            user.setdefault(now, RawColumn(stored[f"{name}.{now}"], (name,)))
    for name, raw in _raw_columns(schema, candidate_columns(schema)).items():
        if name not in user or any(reader not in schema.derived for reader in raw.readers):
            candidate[name] = raw
    return RawColumns(user, candidate)


def _raw_columns(schema: Schema, names: Iterable[str]) -> dict[str, RawColumn]:
    found: dict[str, RawColumn] = {}
    for name in names:
        for stored in stored_columns(schema, name).values():
            before = found.get(stored.column, RawColumn(stored, ()))
            highest = max(before.stored, stored, key=lambda one: one.form)
            found[stored.column] = RawColumn(highest, (*before.readers, name))
    return found


def length_input(name: str) -> str:
    """Names the input that holds the lengths of a list column."""
    return f"{name}.length"


def graph_output(name: str, inputs: Sequence[InputSpec]) -> str:
    """Names an output in the graph, where inputs and outputs share one set of names.

    Args:
        name: name of the output in every protocol.
        inputs: inputs of the model; a column may be called as an output is, ``pctr`` for example.
    """
    return f"{name}.output" if any(spec.name == name for spec in inputs) else name


def input_specs(
    schema: Schema,
    num_rows: Mapping[str, int],
    vector_dims: Mapping[str, int] | None = None,
    new_items: NewItemSettings | None = None,
) -> list[InputSpec]:
    """Describes the inputs of an exported model, in the order of the graph.

    Args:
        schema: columns and tables.
        num_rows: number of rows of each table.
        vector_dims: number of elements of each vector column; None where there is none.
        new_items: rule for new items; None for none.
    """
    dims = vector_dims or {}
    sides = {"users": user_columns(schema), "candidates": candidate_columns(schema)}
    columns = [
        spec
        for axis, names in sides.items()
        for name in names
        for spec in (
            [_vector_spec(name, axis, schema.file_column(name), dims[name])]
            if name in schema.vectors()
            else _column_specs(name, axis, schema, num_rows)
        )
    ]
    user = InputSpec(
        name=USER_OF_CANDIDATE, dtype="int64", shape=("candidates",), column=None, low=0
    )
    if new_item_input(schema, new_items) == NEW_ITEM_OF_CANDIDATE:
        columns.append(
            InputSpec(name=NEW_ITEM_OF_CANDIDATE, dtype="bool", shape=("candidates",), column=None)
        )
    return [*columns, user]


def _column_specs(
    name: str, axis: str, schema: Schema, num_rows: Mapping[str, int]
) -> list[InputSpec]:
    column, source = schema.columns[name], schema.file_column(name)
    if column.group in (Group.NEW_USER, Group.NEW_ITEM):
        return [InputSpec(name=name, dtype="bool", shape=(axis,), column=source)]
    if column.kind is Kind.NUMERIC:
        return [InputSpec(name=name, dtype="float32", shape=(axis,), column=source)]
    if column.kind is Kind.WEIGHTS:  # as long as their list
        shape = axis, f"{list_of_weights(name, schema)}.width"
        return [InputSpec(name=name, dtype="float32", shape=shape, column=source, low=0)]
    is_list = column.kind is Kind.LIST
    width = column.max_length if column.group is Group.BEHAVIOUR else f"{name}.width"
    ids = InputSpec(
        name=name,
        dtype="int64",
        shape=(axis, width) if is_list else (axis,),
        column=source,
        low=0,
        high=num_rows[schema.table_of(name)] - 1,
    )
    if not is_list or column.action_of is not None:  # actions are as long as their items
        return [ids]
    return [ids, _length_spec(name, axis, source, column.max_length)]


def _vector_spec(name: str, axis: str, source: str, dim: int) -> InputSpec:
    return InputSpec(name=name, dtype="float32", shape=(axis, dim), column=source)


def _length_spec(name: str, axis: str, source: str, max_length: int) -> InputSpec:
    return InputSpec(
        name=length_input(name),
        dtype="int64",
        shape=(axis,),
        column=source,
        length_of=name,
        low=0,
        high=max_length,
    )

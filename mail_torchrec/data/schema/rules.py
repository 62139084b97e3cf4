"""Rules that the columns and tables of a schema must obey."""

import unicodedata

from mail_torchrec.data.schema.columns import (
    PREDICTION_COLUMNS,
    Column,
    Group,
    Kind,
    Transform,
)
from mail_torchrec.data.schema.derivations import check_derived
from mail_torchrec.data.schema.schema_columns import SchemaColumns
from mail_torchrec.data.schema.sequence_rules import check_sequences
from mail_torchrec.data.schema.sequences import PartColumn
from mail_torchrec.data.schema.vector_rules import check_vectors
from mail_torchrec.data.schema.weight_rules import check_weights

_MAX_NAME_BYTES = 200  # names of tables become names of files, which may have 255 bytes
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories of control characters (newlines among them) and halves of characters."""


def check_schema(schema: SchemaColumns) -> None:
    """Checks all rules.

    Raises:
        ValueError: a rule is broken; the message names the column and the remedy.
    """
    _check_numbers_of_columns(schema)
    check_weights(schema)
    check_derived(schema.columns)
    _check_ages(schema)
    check_vectors(schema)
    for name, column in schema.columns.items():
        _check_names(schema, name)
        if column.group is Group.PASSTHROUGH:
            _check_passthrough(name, column)
            continue
        if column.group is Group.DAY and column != Column(group=column.group, column=column.column):
            raise ValueError(
                f"schema.columns.{name}: a column of group 'day' is no feature and takes no "
                "setting but 'column'; drop the others"
            )
        _check_kind(name, column)
        _check_padding(name, column)
        if column.action_of is not None:
            _check_actions(schema, name, column.action_of)
        if column.group is Group.BEHAVIOUR and column.action_of is None:
            _check_sequence(schema, name)
        elif column.group is not Group.BEHAVIOUR and column.kind is Kind.LIST:
            _check_pooled_list(schema, name)
    check_sequences(schema)
    _check_tables(schema)
    for group, names in (
        (Group.ATTRIBUTE, schema.fields(Group.ATTRIBUTE)),
        (Group.BEHAVIOUR, schema.sequences),
    ):
        if not names:
            raise ValueError(
                f"schema.columns: at least one column of ids must have group '{group}', found none"
            )


def _check_numbers_of_columns(schema: SchemaColumns) -> None:
    for group in (Group.LABEL, Group.GROUP_KEY):
        if len(found := schema.names(group)) != 1:
            raise ValueError(
                f"schema.columns: exactly one column must have group '{group}', found "
                f"{found or 'none'}"
            )
    for group in (Group.CONVERSION, Group.WEIGHT, Group.NEW_USER, Group.NEW_ITEM, Group.DAY):
        if len(found := schema.names(group)) > 1:
            raise ValueError(
                f"schema.columns: at most one column may have group '{group}', found {found}"
            )


def _setting(name: str, column: Column) -> str:
    """Names the section of a column, or of the part of a sequence that makes it."""
    if isinstance(column, PartColumn):
        return f"schema.sequences.{column.sequence}.{column.sequence_part}"
    return f"schema.columns.{name}"


def _check_ages(schema: SchemaColumns) -> None:
    for name, column in schema.columns.items():
        is_id = column.kind in (Kind.CATEGORICAL, Kind.LIST)
        if column.age_of is not None and is_id and name not in schema.bucketed:
            remedy = "" if column.kind is Kind.LIST else ", or kind 'numeric'"
            raise ValueError(
                f"{_setting(name, column)}: an age is a number, and no id; set "
                f"schema.tables.{schema.table_of(name)}: {{ids: buckets, buckets: 16}}{remedy}"
            )


def _check_names(schema: SchemaColumns, name: str) -> None:
    for what, text in (("column", name), ("table", schema.table_of(name))):
        if not text or "." in text or "/" in text:
            raise ValueError(
                f"schema.columns.{name}: a {what} name must not be empty or hold '.' or '/', "
                f"received '{text}'; 'column' names it in the files"
            )
        if _UNPRINTABLE & set(map(unicodedata.category, text)):
            raise ValueError(
                f"schema.columns: a {what} name must not hold newlines or other control "
                f"characters, received {text!r}; 'column' names it in the files"
            )
        if len(text.encode()) > _MAX_NAME_BYTES:
            raise ValueError(
                f"schema.columns: a {what} name must not be longer than {_MAX_NAME_BYTES} bytes, "
                f"received {len(text.encode())}: {text!r:.60}; 'column' names it in the files"
            )


def _check_kind(name: str, column: Column) -> None:
    if column.transform is not Transform.NONE and column.kind is not Kind.NUMERIC:
        raise ValueError(
            f"schema.columns.{name}: transform '{column.transform}' is for kind 'numeric', "
            f"received kind '{column.kind}'"
        )
    if column.group is Group.BEHAVIOUR and column.kind is not Kind.LIST:
        raise ValueError(
            f"schema.columns.{name}: a behaviour column must have kind 'list', received kind "
            f"'{column.kind}'"
        )
    if column.kind is Kind.NUMERIC and column.table is not None:
        raise ValueError(
            f"schema.columns.{name}: a numeric column looks up no table; drop 'table' or choose "
            "kind 'categorical'"
        )


def _check_passthrough(name: str, column: Column) -> None:
    if column != Column(group=column.group, column=column.column):
        raise ValueError(
            f"schema.columns.{name}: a column of group 'passthrough' is copied as stored and takes "
            "no setting but 'column'; drop the others"
        )
    if name in PREDICTION_COLUMNS:
        raise ValueError(
            f"schema.columns.{name}: predictions have a column '{name}' of their own; choose "
            "another name, 'column' names it in the files"
        )


def _check_padding(name: str, column: Column) -> None:
    if column.padding is None:
        return
    if column.kind is not Kind.LIST:
        raise ValueError(
            f"schema.columns.{name}: padding is for kind 'list', received kind '{column.kind}'"
        )
    if column.action_of is not None:
        raise ValueError(
            f"schema.columns.{name}: padding should be set on '{column.action_of}', whose dropped "
            "entries take their actions with them"
        )


def _check_actions(schema: SchemaColumns, name: str, sequence: str) -> None:
    """Checks a column of actions on the items of ``sequence``."""
    column, items = schema.columns[name], schema.columns.get(sequence)
    is_behaviour = column.group is Group.BEHAVIOUR
    if not is_behaviour or items is None or items.group is not column.group or items.action_of:
        raise ValueError(
            f"schema.columns.{name}: action_of should name a behaviour column of items, received "
            f"'{sequence}'"
        )
    if column.max_length != items.max_length:
        raise ValueError(
            f"schema.columns.{name}: max_length should be that of '{sequence}', "
            f"{items.max_length}, received {column.max_length}"
        )


def _check_sequence(schema: SchemaColumns, name: str) -> None:
    """Checks that a sequence has one target item, and one column of actions at most."""
    targets = schema.targets_of(name)
    if len(targets) != 1:
        raise ValueError(
            f"{_setting(name, schema.columns[name])}: exactly one item column must share table "
            f"'{schema.table_of(name)}' with this behaviour (the target item), found "
            f"{targets or 'none'}; set its 'table'{_first_part(schema, name)}"
        )
    actions = schema.actions_of(name)
    if name not in schema.declared_sequences and len(actions) > 1:
        raise ValueError(
            f"schema.columns.{name}: at most one column may be action_of it, found {actions}"
        )


def _first_part(schema: SchemaColumns, name: str) -> str:
    """Says that the first part counts, since tools that sort the keys of a YAML file change it."""
    if (declared := schema.declared_sequences.get(name)) is None or len(declared.parts) == 1:
        return ""
    parts = list(declared.parts)
    return f", or write the sequence's main part first: '{parts[0]}' is now (of {', '.join(parts)})"


def _check_pooled_list(schema: SchemaColumns, name: str) -> None:
    if (table := schema.table_of(name)) in schema.sequence_tables:
        raise ValueError(
            f"schema.columns.{name}: table '{table}' holds behaviours, which a pooled list cannot "
            "share; give it its own"
        )


def _check_tables(schema: SchemaColumns) -> None:
    used = {schema.table_of(name) for name in schema.id_columns}
    if unused := sorted(set(schema.tables) - used):
        raise ValueError(
            f"schema.tables: {unused} are used by no column; name them in a column's 'table' "
            "or drop them"
        )
    for name in schema.tables:
        try:
            schema.id_policy(name).check_settings()
        except ValueError as error:
            raise ValueError(f"schema.tables.{name}: {error}") from error

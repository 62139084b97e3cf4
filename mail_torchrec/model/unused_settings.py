"""Settings of columns that are accepted and change nothing, in words."""

from collections.abc import Iterator
from difflib import get_close_matches

from mail_torchrec.data.schema.columns import Column, Group, Kind
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.model.builders import ModelSettings

_PLAIN = (Group.LABEL, Group.CONVERSION, Group.GROUP_KEY, Group.NEW_USER, Group.NEW_ITEM, Group.DAY)
_LONGEST = Column.model_fields["max_length"].default


def unused_settings(model: ModelSettings, schema: Schema) -> list[str]:
    """Returns a sentence for each setting without an effect that looks meant.

    Args:
        model: names the labels that are learnt.
        schema: columns and sequences.
    """
    return [
        *_unused_labels(model, schema),
        *_unused_by_columns(schema),
        *_parts_taken_for_others(schema),
    ]


def _unused_labels(model: ModelSettings, schema: Schema) -> Iterator[str]:
    used = {task.label for task in model.tasks.values()}
    for name in schema.names(Group.TASK_LABEL):
        if name not in used:
            yield (
                f"schema.columns.{name}: no task learns this label; add model.tasks.NAME: "
                f"{{label: {name}}}, or drop the column"
            )
    if schema.conversion is not None and model.multi_task is None:
        yield (
            f"schema.columns.{schema.conversion}: nothing learns this conversion, which "
            "model.multi_task does; set it, or drop the column"
        )


def _unused_by_columns(schema: Schema) -> Iterator[str]:
    for name, column in schema.columns.items():
        if column.group in _PLAIN:
            kept = {"column": column.column, "kind": column.kind}
            plain = Column(group=column.group).model_copy(update=kept)
            unused = [
                key for key in Column.model_fields if getattr(column, key) != getattr(plain, key)
            ]
        else:
            is_cut = column.kind is Kind.LIST or column.max_length == _LONGEST
            unused = [] if is_cut else ["max_length"]
        if unused:
            yield (
                f"schema.columns.{name}: {', '.join(unused)} changes nothing of a column of group "
                f"'{column.group}' and kind '{column.kind}'; drop it, or correct the kind"
            )


def _parts_taken_for_others(schema: Schema) -> Iterator[str]:
    for name, settings in schema.declared_sequences.items():
        parts = list(settings.parts)
        if "action" not in parts and (near := get_close_matches("action", parts, 1, 0.8)):
            yield (
                f"schema.sequences.{name}.{near[0]}: a part named 'action' is what was done with "
                f"each item, '{near[0]}' is a part as any other; rename it if it is the actions"
            )
        if "item" in parts[1:]:
            yield (
                f"schema.sequences.{name}: the first part is the main one, and that is "
                f"'{parts[0]}', not 'item'; were the keys sorted? Write item first if it is meant"
            )

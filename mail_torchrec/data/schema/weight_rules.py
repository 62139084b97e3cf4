"""Rules that columns of weights and of positions must obey."""

from mail_torchrec.data.schema.columns import Column, Group, Kind
from mail_torchrec.data.schema.schema_columns import SchemaColumns

_POOLED_GROUPS = (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)


def check_weights(schema: SchemaColumns) -> None:
    """Checks the columns of row weights, of list weights, and of positions.

    Raises:
        ValueError: a rule is broken; the message names the column and the remedy.
    """
    weighed = list(schema.list_weights.values())
    for name, column in schema.columns.items():
        if column.group is Group.WEIGHT:
            _check_plain(name, column, Column(group=column.group), "group 'weight'")
        elif column.kind is Kind.WEIGHTS:
            _check_plain(name, column, Column(group=column.group, kind=column.kind), "weights")
            if weighed.count(name) != 1:
                raise ValueError(
                    f"schema.columns.{name}: one list should name it in 'weights', received "
                    f"{weighed.count(name)}; declare one such column for each list, 'column' names "
                    "it in the files"
                )
        if column.group is Group.TASK_LABEL:
            kind = Kind.NUMERIC if column.kind is Kind.NUMERIC else Kind.CATEGORICAL
            _check_plain(name, column, Column(group=column.group, kind=kind), "group 'task_label'")
        if column.group is Group.POSITION and column.kind is not Kind.CATEGORICAL:
            raise ValueError(
                f"schema.columns.{name}: a column of group 'position' should be of kind "
                f"'categorical', received '{column.kind}'"
            )
        for key in ("position_value", "position_dropout"):
            if getattr(column, key) is not None and column.group is not Group.POSITION:
                raise ValueError(
                    f"schema.columns.{name}: {key} is for group 'position', received group "
                    f"'{column.group}'"
                )
    for name, weights in schema.list_weights.items():
        _check_list_weights(schema, name, weights)


def _check_list_weights(schema: SchemaColumns, name: str, weights: str) -> None:
    column, found = schema.columns[name], schema.columns.get(weights)
    if column.group not in _POOLED_GROUPS or column.kind is not Kind.LIST:
        raise ValueError(
            f"schema.columns.{name}: weights are for lists of groups {', '.join(_POOLED_GROUPS)}, "
            f"received kind '{column.kind}' of group '{column.group}'"
        )
    if found is None or found.group is not column.group or found.kind is not Kind.WEIGHTS:
        raise ValueError(
            f"schema.columns.{name}: weights should name a column of kind 'weights' and group "
            f"'{column.group}', received '{weights}'"
        )


def _check_plain(name: str, column: Column, allowed: Column, what: str) -> None:
    """Checks that a column has no setting but its file column."""
    if column != allowed.model_copy(update={"column": column.column}):
        raise ValueError(
            f"schema.columns.{name}: a column of {what} holds numbers and takes no setting but "
            "'column'; drop the others"
        )

"""The schema: the only list of columns, the groups they belong to and the tables they look up.

A *column* is an input column (a feature), a *table* is parameters, and tables are shared by name.
"""

from functools import cached_property
from typing import Self

from pydantic import Field, model_validator

from mail_torchrec.data.schema.columns import Actions, Column, Group, Ids, Kind, Table, Transform
from mail_torchrec.settings import Settings

__all__ = ["Actions", "Column", "Group", "Ids", "Kind", "Schema", "Table", "Transform"]


class Schema(Settings):
    """Columns and tables of one dataset.

    A worked example (the README explains it line by line)::

        dim: 32
        columns:
          user:      {group: group_key, column: user_id}
          clicked:   {group: label}
          age:       {group: attribute}
          history:   {group: behaviour, kind: list, table: item, max_length: 50}
          actions:   {group: behaviour, kind: list, action_of: history}
          hour:      {group: context}
          item:      {group: item}
          tags:      {group: item, kind: list}
          price:     {group: item, kind: numeric, transform: log}
        tables:
          item:      {ids: hash, rows: 1000000}

    Raises:
        ValueError: a rule of the schema is broken; the message names the column and the remedy.
    """

    dim: int = Field(default=32, ge=1)
    """The embedding dimension of every table that names none."""
    actions: Actions = Actions.PRODUCT
    """A behaviour vector: item times action (product), item and action side by side (concat), or
    the item alone (ignore)."""
    columns: dict[str, Column]
    """Name in the project -> column, in the order in which the towers see them."""
    tables: dict[str, Table] = {}
    """Table name -> what differs from the defaults."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for group in (Group.LABEL, Group.GROUP_KEY):
            if len(found := self.names(group)) != 1:
                raise ValueError(
                    f"schema.columns: exactly one column must have group '{group}', found "
                    f"{found or 'none'}"
                )
        for group in (Group.CONVERSION, Group.NEW_USER):
            if len(found := self.names(group)) > 1:
                raise ValueError(
                    f"schema.columns: at most one column may have group '{group}', found {found}"
                )
        for name, column in self.columns.items():
            self._check_column(name, column)
        if unused := sorted(
            set(self.tables) - set(self.table_of(name) for name in self.id_columns)
        ):
            raise ValueError(
                f"schema.tables: {unused} are used by no column; name them in a column's 'table' "
                "or drop them"
            )
        for name, table in self.tables.items():
            if table.ids is Ids.HASH and table.rows is None:
                raise ValueError(
                    f"schema.tables.{name}: ids 'hash' needs 'rows', the number of rows to hash "
                    "into"
                )
        for group, names in self._same_dim().items():
            self._check_dims(group, names)
        for group, names in (
            (Group.ATTRIBUTE, self.fields(Group.ATTRIBUTE)),
            (Group.BEHAVIOUR, self.sequences),
        ):
            if not names:
                raise ValueError(
                    f"schema.columns: at least one column of ids must have group '{group}', found "
                    "none"
                )
        return self

    def _check_column(self, name: str, column: Column) -> None:
        where = f"schema.columns.{name}"
        for what, text in (("column", name), ("table", self.table_of(name))):
            if not text or "." in text or "/" in text:
                raise ValueError(
                    f"{where}: a {what} name must not be empty or hold '.' or '/', received "
                    f"'{text}'; 'column' names it in the files"
                )
        if column.transform is not Transform.NONE and column.kind is not Kind.NUMERIC:
            raise ValueError(
                f"{where}: transform '{column.transform}' is for kind 'numeric', received kind "
                f"'{column.kind}'"
            )
        if column.group is Group.BEHAVIOUR and column.kind is not Kind.LIST:
            raise ValueError(
                f"{where}: a behaviour column must have kind 'list', received kind '{column.kind}'"
            )
        if column.action_of is not None:
            other = self.columns.get(column.action_of)
            if (
                column.group is not Group.BEHAVIOUR
                or other is None
                or other.group is not Group.BEHAVIOUR
                or other.action_of
            ):
                raise ValueError(
                    f"{where}: action_of should name a behaviour column of items, received "
                    f"'{column.action_of}'"
                )
            if column.max_length != other.max_length:
                raise ValueError(
                    f"{where}: max_length should be that of '{column.action_of}', "
                    f"{other.max_length}, received {column.max_length}"
                )
        if column.kind is Kind.NUMERIC and column.table is not None:
            raise ValueError(
                f"{where}: a numeric column looks up no table; drop 'table' or choose kind "
                "'categorical'"
            )
        if column.group is Group.BEHAVIOUR and column.action_of is None:
            self._check_sequence(name)
        elif (
            column.group is not Group.BEHAVIOUR
            and column.kind is Kind.LIST
            and self.table_of(name) in self.sequence_tables
        ):
            raise ValueError(
                f"{where}: table '{self.table_of(name)}' holds behaviours, which a pooled list "
                "cannot share; give it its own"
            )

    def _check_sequence(self, name: str) -> None:
        targets = [
            item
            for item in self.names(Group.ITEM)
            if item in self.scalars and self.table_of(item) == self.table_of(name)
        ]
        if len(targets) != 1:
            raise ValueError(
                f"schema.columns.{name}: exactly one item column must share table "
                f"'{self.table_of(name)}' with this behaviour "
                f"(the target item), found {targets or 'none'}; set its 'table'"
            )
        if len(actions := self._actions(name)) > 1:
            raise ValueError(
                f"schema.columns.{name}: at most one column may be action_of it, found {actions}"
            )

    def _same_dim(self) -> dict[Group, list[str]]:
        """The columns of each group that stand on one field axis and so need one dimension."""
        fields = {
            group: self.fields(group) for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
        }
        behaviours = (
            self.names(Group.BEHAVIOUR) if self.actions is Actions.PRODUCT else self.sequences
        )
        return {**fields, Group.BEHAVIOUR: behaviours}

    def _check_dims(self, group: Group, names: list[str]) -> None:
        dims = {name: self.table(self.table_of(name)).dim for name in names}
        if len(set(dims.values())) > 1:
            raise ValueError(
                f"schema: the tables of one group should have one dimension, received {dims} in "
                f"group '{group}'"
            )

    def names(self, *groups: Group) -> list[str]:
        """The columns of these groups, in schema order."""
        return [name for name, column in self.columns.items() if column.group in groups]

    @cached_property
    def lists(self) -> list[str]:
        """The columns that hold a list of ids a row."""
        return [name for name in self.id_columns if self.columns[name].kind is Kind.LIST]

    @cached_property
    def scalars(self) -> list[str]:
        """The columns that hold one id a row."""
        return [name for name in self.id_columns if self.columns[name].kind is Kind.CATEGORICAL]

    @cached_property
    def id_columns(self) -> list[str]:
        """The columns that look up a table."""
        features = self.names(Group.ATTRIBUTE, Group.BEHAVIOUR, Group.CONTEXT, Group.ITEM)
        return [name for name in features if self.columns[name].kind is not Kind.NUMERIC]

    def numeric(self, *groups: Group) -> list[str]:
        """The numeric columns of these groups, group by group; by default those of attributes, context and items."""
        groups = groups or (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
        return [
            name
            for group in groups
            for name in self.names(group)
            if self.columns[name].kind is Kind.NUMERIC
        ]

    def file_column(self, name: str) -> str:
        """The column of the files that a schema column reads."""
        return self.columns[name].column or name

    def table_of(self, name: str) -> str:
        """The name of the table that a column looks up."""
        return self.columns[name].table or name

    def table(self, name: str) -> Table:
        """A table's settings, the dimension filled in."""
        table = self.tables.get(name, Table())
        return table if table.dim is not None else table.model_copy(update={"dim": self.dim})

    @property
    def table_names(self) -> list[str]:
        """Every table, in order of first use."""
        return list(dict.fromkeys(self.table_of(name) for name in self.id_columns))

    @cached_property
    def sequences(self) -> list[str]:
        """The behaviour columns that hold items (not actions)."""
        return [
            name for name in self.names(Group.BEHAVIOUR) if self.columns[name].action_of is None
        ]

    def action_of(self, sequence: str) -> str | None:
        """The column that holds the actions on a sequence's items, if there is one."""
        return next(iter(self._actions(sequence)), None)

    def target_of(self, sequence: str) -> str:
        """The item column on the same table as a sequence: the target item."""
        return next(
            item
            for item in self.names(Group.ITEM)
            if item in self.scalars and self.table_of(item) == self.table_of(sequence)
        )

    def table_dim(self, name: str) -> int:
        """The dimension of the table that a column looks up."""
        table = self.tables.get(self.table_of(name))
        return self.dim if table is None or table.dim is None else table.dim

    def behaviour_dim(self, sequence: str) -> int:
        """The dimension of a sequence's behaviour vectors."""
        actions = self.action_of(sequence)
        return self.table_dim(sequence) + (
            self.table_dim(actions) if actions and self.actions is Actions.CONCAT else 0
        )

    @cached_property
    def sequence_tables(self) -> list[str]:
        """The tables of the unpooled collection: those that behaviours look up."""
        return list(dict.fromkeys(self.table_of(name) for name in self.names(Group.BEHAVIOUR)))

    @cached_property
    def unpooled(self) -> list[str]:
        """The columns looked up one vector an id: behaviours, and whatever shares their tables."""
        return [name for name in self.id_columns if self.table_of(name) in self.sequence_tables]

    @cached_property
    def unpooled_scalars(self) -> list[str]:
        """The unpooled columns that hold one id a row: target items, and attributes or context on their tables."""
        return [name for name in self.scalars if self.table_of(name) in self.sequence_tables]

    @cached_property
    def pooled(self) -> list[str]:
        """The columns looked up one vector a row."""
        return [name for name in self.id_columns if self.table_of(name) not in self.sequence_tables]

    def fields(self, group: Group) -> list[str]:
        """The id columns of a group, in the order of the towers' field axis; for items the target items come first."""
        fields = [name for name in self.names(group) if name in self.id_columns]
        targets = (
            [self.target_of(sequence) for sequence in self.sequences] if group is Group.ITEM else []
        )
        return list(dict.fromkeys([*targets, *fields]))

    @property
    def label(self) -> str:
        """The label column."""
        return self.names(Group.LABEL)[0]

    @property
    def conversion(self) -> str | None:
        """The column that says whether something was bought, watched to its end, ... after the click, if there is one."""
        return next(iter(self.names(Group.CONVERSION)), None)

    @property
    def group_key(self) -> str:
        """The column that tells whose row it is."""
        return self.names(Group.GROUP_KEY)[0]

    @property
    def new_user(self) -> str | None:
        """The column that says which rows are new users', if there is one."""
        return next(iter(self.names(Group.NEW_USER)), None)

    def _actions(self, sequence: str) -> list[str]:
        return [name for name, column in self.columns.items() if column.action_of == sequence]

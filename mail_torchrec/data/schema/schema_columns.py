"""Columns and tables of a dataset, and the groups of columns that follow from them."""

from functools import cached_property

from pydantic import Field

from mail_torchrec.data.ids.policy import IdPolicy
from mail_torchrec.data.ids.registry import id_policy
from mail_torchrec.data.schema.columns import (
    Actions,
    Column,
    EmbeddingTableSettings,
    Group,
    Kind,
)
from mail_torchrec.settings import Settings


class SchemaColumns(Settings):
    """Columns and tables as configured; :class:`~.schema.Schema` adds the rules they must obey.

    Tables that behaviours look up are *unpooled* (one vector an id, TorchRec's
    EmbeddingCollection); all others are *pooled* (one vector a row, EmbeddingBagCollection).
    """

    dim: int = Field(default=32, ge=1)
    """Embedding dimension of every table that names none."""
    actions: Actions = Actions.PRODUCT
    """Combination of a behaviour's item and action embeddings: `product` (elementwise, the paper),
    `concat` (side by side), or `ignore` (the item alone)."""
    columns: dict[str, Column]
    """Input columns by their names in the project, in the order in which the towers see them."""
    tables: dict[str, EmbeddingTableSettings] = {}
    """Embedding tables by name, where they differ from the defaults."""

    def names(self, *groups: Group) -> list[str]:
        """Returns the columns of these groups, in schema order."""
        return [name for name, column in self.columns.items() if column.group in groups]

    @cached_property
    def read_columns(self) -> list[str]:
        """Columns that training and evaluation read: all but those that are passed through."""
        return [name for name in self.columns if name not in self.names(Group.PASSTHROUGH)]

    @cached_property
    def id_columns(self) -> list[str]:
        """Columns that look up a table."""
        features = self.names(Group.ATTRIBUTE, Group.BEHAVIOUR, Group.CONTEXT, Group.ITEM)
        return [name for name in features if self.columns[name].kind is not Kind.NUMERIC]

    @cached_property
    def lists(self) -> list[str]:
        """Columns that hold a list of ids a row."""
        return [name for name in self.id_columns if self.columns[name].kind is Kind.LIST]

    @cached_property
    def scalars(self) -> list[str]:
        """Columns that hold one id a row."""
        return [name for name in self.id_columns if self.columns[name].kind is Kind.CATEGORICAL]

    def numeric(self, *groups: Group) -> list[str]:
        """Returns the numeric columns of these groups, group by group.

        Args:
            groups: by default attributes, context and items.
        """
        groups = groups or (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
        return [
            name
            for group in groups
            for name in self.names(group)
            if self.columns[name].kind is Kind.NUMERIC
        ]

    def file_column(self, name: str) -> str:
        """Returns the column of the files that a schema column reads."""
        return self.columns[name].column or name

    @property
    def label(self) -> str:
        """Label column."""
        return self.names(Group.LABEL)[0]

    @property
    def conversion(self) -> str | None:
        """Column of conversions after the click (bought, watched to the end, ...), or None."""
        return next(iter(self.names(Group.CONVERSION)), None)

    @property
    def group_key(self) -> str:
        """Column of the user."""
        return self.names(Group.GROUP_KEY)[0]

    @property
    def new_user(self) -> str | None:
        """Column that flags rows of new users, or None."""
        return next(iter(self.names(Group.NEW_USER)), None)

    def table_of(self, name: str) -> str:
        """Returns the name of the table that a column looks up."""
        return self.columns[name].table or name

    def table(self, name: str) -> EmbeddingTableSettings:
        """Returns a table's settings, with its dimension filled in."""
        table = self.tables.get(name, EmbeddingTableSettings())
        return table if table.dim is not None else table.model_copy(update={"dim": self.dim})

    def id_policy(self, name: str) -> IdPolicy:
        """Returns the policy that turns the ids of a table into its rows."""
        return id_policy(name, self.tables.get(name, EmbeddingTableSettings()))

    @property
    def table_names(self) -> list[str]:
        """All tables, in the order of their first columns."""
        return list(dict.fromkeys(self.table_of(name) for name in self.id_columns))

    def table_dim(self, name: str) -> int:
        """Returns the dimension of the table that a column looks up."""
        table = self.tables.get(self.table_of(name))
        return self.dim if table is None or table.dim is None else table.dim

    @cached_property
    def sequences(self) -> list[str]:
        """Behaviour columns that hold items (not actions)."""
        return [
            name for name in self.names(Group.BEHAVIOUR) if self.columns[name].action_of is None
        ]

    def actions_of(self, sequence: str) -> list[str]:
        """Returns the columns of actions on a sequence's items (at most one in a valid schema)."""
        return [name for name, column in self.columns.items() if column.action_of == sequence]

    def action_of(self, sequence: str) -> str | None:
        """Returns the column of actions on a sequence's items, or None."""
        return next(iter(self.actions_of(sequence)), None)

    def targets_of(self, sequence: str) -> list[str]:
        """Returns the item columns on a sequence's table (exactly one in a valid schema)."""
        return [
            item
            for item in self.names(Group.ITEM)
            if item in self.scalars and self.table_of(item) == self.table_of(sequence)
        ]

    def target_of(self, sequence: str) -> str:
        """Returns the target item: the item column on the same table as a sequence."""
        return self.targets_of(sequence)[0]

    def behaviour_dim(self, sequence: str) -> int:
        """Returns the dimension of a sequence's behaviour vectors."""
        dim, actions = self.table_dim(sequence), self.action_of(sequence)
        if actions is not None and self.actions is Actions.CONCAT:
            dim += self.table_dim(actions)
        return dim

    @cached_property
    def sequence_tables(self) -> list[str]:
        """Unpooled tables: those that behaviours look up."""
        return list(dict.fromkeys(self.table_of(name) for name in self.names(Group.BEHAVIOUR)))

    @cached_property
    def unpooled(self) -> list[str]:
        """Columns looked up one vector an id: behaviours, and the columns on their tables."""
        return [name for name in self.id_columns if self.table_of(name) in self.sequence_tables]

    @cached_property
    def unpooled_scalars(self) -> list[str]:
        """Unpooled columns of one id a row: target items, other columns on behaviours' tables."""
        return [name for name in self.scalars if self.table_of(name) in self.sequence_tables]

    @cached_property
    def pooled(self) -> list[str]:
        """Columns looked up one vector a row."""
        return [name for name in self.id_columns if self.table_of(name) not in self.sequence_tables]

    def fields(self, group: Group) -> list[str]:
        """Returns the id columns of a group in the order of the towers' field axis.

        Of the items, the target items come first.
        """
        fields = [name for name in self.names(group) if name in self.id_columns]
        is_item = group is Group.ITEM
        targets = [self.target_of(sequence) for sequence in self.sequences] if is_item else []
        return list(dict.fromkeys([*targets, *fields]))

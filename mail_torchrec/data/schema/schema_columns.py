"""Columns and tables of a dataset, and the groups of columns that follow from them."""

from collections.abc import Mapping
from functools import cached_property
from typing import Self

from mail_torchrec.data.ids.policy import IdPolicy
from mail_torchrec.data.ids.registry import id_policy
from mail_torchrec.data.schema.columns import (
    Actions,
    EmbeddingTableSettings,
    Group,
    Kind,
)
from mail_torchrec.data.schema.configured_columns import ConfiguredColumns
from mail_torchrec.data.schema.dims import AUTO_DIM, auto_dim
from mail_torchrec.data.schema.sequences import Join, PartColumn


class SchemaColumns(ConfiguredColumns):
    """Columns and tables; :class:`~.schema.Schema` adds the rules they must obey.

    Tables that behaviours look up are *unpooled* (one vector an id, TorchRec's
    EmbeddingCollection); all others are *pooled* (one vector a row, EmbeddingBagCollection).
    """

    @cached_property
    def id_columns(self) -> list[str]:
        """Columns that look up a table."""
        groups = Group.ATTRIBUTE, Group.BEHAVIOUR, Group.CONTEXT, Group.POSITION, Group.ITEM
        kinds = Kind.CATEGORICAL, Kind.LIST
        return [name for name in self.names(*groups) if self.columns[name].kind in kinds]

    @cached_property
    def list_weights(self) -> dict[str, str]:
        """Columns that weigh the entries of a list, by the column of the list."""
        return {
            name: column.weights
            for name, column in self.columns.items()
            if column.weights is not None
        }

    @cached_property
    def bucketed(self) -> frozenset[str]:
        """Columns that hold numbers, which their tables cut into buckets."""
        return frozenset(
            name for name in self.id_columns if self.id_policy(self.table_of(name)).takes_numbers
        )

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
        return self._of_kind(Kind.NUMERIC, groups)

    def vectors(self, *groups: Group) -> list[str]:
        """Returns the vector columns of these groups, group by group.

        Each is one more field behind the id columns of its group.

        Args:
            groups: by default attributes, context and items.
        """
        return self._of_kind(Kind.VECTOR, groups)

    def _of_kind(self, kind: Kind, groups: tuple[Group, ...]) -> list[str]:
        groups = groups or (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
        names = (name for group in groups for name in self.names(group))
        return [name for name in names if self.columns[name].kind is kind]

    def field_dim(self, group: Group) -> int:
        """Returns the dimension of a group's fields, `dim` where it has none of ids."""
        return max(map(self.table_dim, self.fields(group)), default=self.dim)

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
        dim = self.dim if table is None or table.dim is None else table.dim
        assert dim != AUTO_DIM, "with_dims chooses it"
        return dim

    def with_dims(self, num_rows: Mapping[str, int]) -> Self:
        """Returns the schema with a number for each `dim: auto`.

        Args:
            num_rows: rows of every table.
        """
        tables = {name: self.table(name) for name in self.table_names}
        if all(table.dim != AUTO_DIM for table in tables.values()):
            return self
        most = None if self.dim == AUTO_DIM else self.dim
        dims = {
            name: auto_dim(num_rows[name], most) if table.dim == AUTO_DIM else table.dim
            for name, table in tables.items()
        }
        chosen = {
            name: table.model_copy(update={"dim": dims[name]}) for name, table in tables.items()
        }
        dim = max(filter(None, dims.values())) if most is None else most
        return self.model_copy(update={"dim": dim, "tables": chosen})

    @cached_property
    def sequences(self) -> list[str]:
        """Behaviour columns that hold items (not actions)."""
        return [
            name for name in self.names(Group.BEHAVIOUR) if self.columns[name].action_of is None
        ]

    def actions_of(self, sequence: str) -> list[str]:
        """Returns the columns aligned with a sequence's items: its actions, or its other parts."""
        return [name for name, column in self.columns.items() if column.action_of == sequence]

    def action_of(self, sequence: str) -> str | None:
        """Returns the column of actions on a sequence's items, or None."""
        if (declared := self.declared_sequences.get(sequence)) is None:
            return next(iter(self.actions_of(sequence)), None)
        columns = self.part_names(sequence)
        return columns[list(declared.parts).index("action")] if "action" in declared.parts else None

    def part_names(self, sequence: str) -> list[str]:
        """Returns the columns of a sequence, that of its items first."""
        return [sequence, *self.actions_of(sequence)]

    def join_of(self, sequence: str) -> Join:
        """Returns how the vectors of a sequence's parts are joined."""
        if (declared := self.declared_sequences.get(sequence)) is not None:
            return declared.join
        return Join.CONCAT if self.actions is Actions.CONCAT else Join.PRODUCT

    def joined_parts(self, sequence: str) -> list[str]:
        """Returns the columns whose vectors make a behaviour vector, the main one first."""
        columns = self.part_names(sequence)
        if (declared := self.declared_sequences.get(sequence)) is None:
            return columns[:1] if self.actions is Actions.IGNORE else columns
        parts = declared.parts.values()
        return [name for name, part in zip(columns, parts, strict=True) if part.joined]

    @cached_property
    def unjoined_tables(self) -> list[str]:
        """Tables whose vectors no tower reads: those of parts that are joined to nothing alone."""
        joined = [name for sequence in self.sequences for name in self.joined_parts(sequence)]
        others = [name for name in self.id_columns if name not in self.names(Group.BEHAVIOUR)]
        read = {self.table_of(name) for name in (*joined, *others)}
        return [name for name in self.sequence_tables if name not in read]

    def match_column(self, sequence: str) -> str:
        """Returns the column of the part that a sequence's match loss is about."""
        declared = self.declared_sequences.get(sequence)
        if declared is None or declared.match is None:
            return sequence
        return self.part_names(sequence)[list(declared.parts).index(declared.match)]

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

    def part_target(self, name: str) -> str | None:
        """Returns the item column that stands for a part in the candidate's vector, or None.

        A part without one, such as an action or a time, is left out of the candidate's vector:
        zeros stand for it in a concatenation. Actions of ``action_of`` never have one.
        """
        column = self.columns[name]
        if column.action_of is not None and not isinstance(column, PartColumn):
            return None
        return next(iter(self.targets_of(name)), None)

    def behaviour_dim(self, sequence: str) -> int:
        """Returns the dimension of a sequence's behaviour vectors."""
        dims = [self.table_dim(name) for name in self.joined_parts(sequence)]
        return sum(dims) if self.join_of(sequence) is Join.CONCAT else max(dims)

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

        Of the items, the target items come first. Positions are fields of the context, behind it.
        """
        groups = (group, *([Group.POSITION] if group is Group.CONTEXT else []))
        fields = [name for one in groups for name in self.names(one) if name in self.id_columns]
        is_item = group is Group.ITEM
        targets = [self.target_of(sequence) for sequence in self.sequences] if is_item else []
        return list(dict.fromkeys([*targets, *fields]))

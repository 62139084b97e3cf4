"""A schema as configured: its fields, and the columns of the files that it reads."""

from functools import cached_property
from typing import Any

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, field_serializer

from mail_torchrec.data.schema.columns import Actions, Column, EmbeddingTableSettings, Group
from mail_torchrec.data.schema.derivations import (
    RawInput,
    derived_name,
    is_derived,
    raw_inputs,
)
from mail_torchrec.data.schema.dims import Dim
from mail_torchrec.data.schema.sequences import PartColumn, SequenceSettings
from mail_torchrec.settings import Settings


class ConfiguredColumns(Settings):
    """Columns and tables as configured, and the columns of the files that they are read from."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    dim: Dim = 32
    """Embedding dimension of every table that names none. `auto` chooses it by a table's number of
    rows, `6 * rows ** 0.25` rounded to a multiple of 4 (Wang et al. 2017). Narrower tables of a
    group are projected to its widest."""
    actions: Actions = Actions.PRODUCT
    """Combination of a behaviour's item and action embeddings: `product` (elementwise, the paper),
    `concat` (side by side), or `ignore` (the item alone)."""
    columns: dict[str, Column]
    """Input columns by their names in the project, in the order in which the towers see them."""
    # Left out of the settings of runs and models without them, which so stay as they were.
    declared_sequences: dict[str, SequenceSettings] = Field(
        default={}, alias="sequences", exclude_if=lambda sequences: not sequences
    )
    """Behaviour sequences of several aligned lists (item, category, brand, action, time, ...). Each
    part becomes a behaviour column, the first one under the sequence's name."""
    tables: dict[str, EmbeddingTableSettings] = {}
    """Embedding tables by name, where they differ from the defaults."""

    @field_serializer("columns", mode="wrap")
    def _without_parts(
        self, columns: dict[str, Column], serialize: SerializerFunctionWrapHandler
    ) -> Any:
        """Leaves out the columns of declared sequences, which their section makes again."""
        return serialize(
            {name: column for name, column in columns.items() if not isinstance(column, PartColumn)}
        )

    def names(self, *groups: Group) -> list[str]:
        """Returns the columns of these groups, in schema order."""
        return [name for name, column in self.columns.items() if column.group in groups]

    @cached_property
    def read_columns(self) -> list[str]:
        """Columns that training and evaluation read: all but those that are passed through."""
        return [name for name in self.columns if name not in self.names(Group.PASSTHROUGH)]

    def file_column(self, name: str) -> str:
        """Returns the column of tables that a schema column reads: the files' or a derived one."""
        column = self.columns[name]
        return derived_name(name, column) if is_derived(column) else column.column or name

    @cached_property
    def derived(self) -> dict[str, list[RawInput]]:
        """Raw inputs of the derived columns by name, in the order in which they are computed."""
        names = [name for name, column in self.columns.items() if is_derived(column)]
        names.sort(key=lambda name: self.columns[name].cross is not None)  # may be of the others
        return {name: raw_inputs(name, self.columns) for name in names}

    def raw_columns(self, name: str) -> list[str]:
        """Returns the columns of the files that a schema column is read or computed from."""
        if name in self.derived:
            return [one.column for one in self.derived[name]]
        return [self.file_column(name)]

    @property
    def label(self) -> str:
        """Label column."""
        return self.names(Group.LABEL)[0]

    @property
    def conversion(self) -> str | None:
        """Column of conversions after the click (bought, watched to the end, ...), or None."""
        return next(iter(self.names(Group.CONVERSION)), None)

    @property
    def weight(self) -> str | None:
        """Column of the rows' weights, or None."""
        return next(iter(self.names(Group.WEIGHT)), None)

    @property
    def group_key(self) -> str:
        """Column of the user."""
        return self.names(Group.GROUP_KEY)[0]

    @property
    def new_user(self) -> str | None:
        """Column that flags rows of new users, or None."""
        return next(iter(self.names(Group.NEW_USER)), None)

    @property
    def day(self) -> str | None:
        """Column of the day of a row, or None."""
        return next(iter(self.names(Group.DAY)), None)

    @property
    def new_item(self) -> str | None:
        """Column that flags rows of new items, or None."""
        return next(iter(self.names(Group.NEW_ITEM)), None)

"""Schema of a dataset: its columns, their groups, and the embedding tables they look up.

A *column* is an input column (a feature), a *table* holds parameters, and tables are shared by
name.
"""

from typing import Self

from pydantic import model_validator

from mail_torchrec.data.schema.columns import Actions, Column, Group, Kind, Transform
from mail_torchrec.data.schema.rules import check_schema
from mail_torchrec.data.schema.schema_columns import SchemaColumns
from mail_torchrec.data.schema.sequences import with_part_columns

__all__ = ["Actions", "Column", "Group", "Kind", "Schema", "Transform"]


class Schema(SchemaColumns):
    """Columns and tables of one dataset, checked against the rules of a schema.

    A worked example (the README of this folder explains it line by line)::

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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.declared_sequences:
            columns = with_part_columns(self.columns, self.declared_sequences)
            object.__setattr__(self, "columns", columns)
        check_schema(self)
        return self

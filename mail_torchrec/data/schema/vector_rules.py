"""Rules that columns of vectors, and tables that begin with vectors of a file, must obey."""

from mail_torchrec.data.schema.columns import Column, Group, Kind
from mail_torchrec.data.schema.schema_columns import SchemaColumns

_GROUPS = (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)


def check_vectors(schema: SchemaColumns) -> None:
    """Checks the columns of kind ``vector``, and the tables that have ``init_from``.

    Raises:
        ValueError: a rule is broken; the message names the column or table, and the remedy.
    """
    for name, column in schema.columns.items():
        if column.kind is Kind.VECTOR:
            _check_vector(schema, name, column)
        elif column.length is not None:
            raise ValueError(
                f"schema.columns.{name}: length is for kind 'vector', received kind "
                f"'{column.kind}'; a list has 'max_length'"
            )
    for name, table in schema.tables.items():
        if table.init_from is not None and table.ids not in ("vocabulary", "managed"):
            raise ValueError(
                f"schema.tables.{name}: init_from needs ids 'vocabulary' or 'managed', which "
                f"have rows of their own, received ids '{table.ids}'; change one of the two"
            )


def _check_vector(schema: SchemaColumns, name: str, column: Column) -> None:
    if column.group not in _GROUPS:
        raise ValueError(
            f"schema.columns.{name}: a vector should be of group 'attribute', 'context' or 'item', "
            f"received '{column.group}'; a history has content by schema.tables.NAME.init_from"
        )
    plain = Column(group=column.group, kind=column.kind, column=column.column, length=column.length)
    if column != plain:
        raise ValueError(
            f"schema.columns.{name}: a vector looks up no table, and takes no settings but "
            "'column' and 'length'; drop the others"
        )
    source = schema.file_column(name)
    for other, with_it in schema.columns.items():
        is_other = with_it.kind is not Kind.VECTOR and with_it.group is not Group.PASSTHROUGH
        if is_other and schema.file_column(other) == source:
            raise ValueError(
                f"schema.columns.{name}: column '{source}' of the files should hold vectors alone, "
                f"and '{other}' reads it as kind '{with_it.kind}'; drop one of the two"
            )

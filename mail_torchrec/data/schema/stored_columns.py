"""Columns of the files that a schema reads, and the types that their values may have."""

from enum import IntEnum
from typing import NamedTuple

from mail_torchrec.data.parquet.logical_types import LogicalType
from mail_torchrec.data.schema.columns import Column, Group, Kind
from mail_torchrec.data.schema.derivations import InputKind
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.schema.sequences import PartColumn

_NUMBERS = (Kind.NUMERIC, Kind.VECTOR, Kind.WEIGHTS)


class Form(IntEnum):
    """Form of a stored value; where one column serves several, the highest holds them all."""

    FLAG = 0
    NUMBER = 1
    TIME = 2
    ID = 3

    @property
    def allowed(self) -> set[LogicalType]:
        """Logical types that may stand for it."""
        return _ALLOWED[self]


_ALLOWED = {
    Form.FLAG: {LogicalType.INTEGER, LogicalType.NUMBER, LogicalType.BOOLEAN},
    Form.NUMBER: {LogicalType.INTEGER, LogicalType.NUMBER, LogicalType.TIME},
    Form.TIME: {LogicalType.INTEGER, LogicalType.TIME},
    Form.ID: {LogicalType.INTEGER, LogicalType.STRING, LogicalType.BOOLEAN},
}
_WORDS = {
    Form.FLAG: ("a boolean or number of 0 and 1", ""),
    Form.NUMBER: ("a number", "a list of numbers"),
    Form.TIME: (
        "a timestamp, a date or an integer in a time_unit",
        "a list of timestamps, dates or integers in a time_unit",
    ),
    Form.ID: ("an integer, string or boolean (an id)", "a list of integers or strings"),
}


class StoredColumn(NamedTuple):
    """One column of the files as a column of the schema reads it."""

    column: str
    """Name in the files."""
    form: Form
    is_list: bool

    @property
    def expectation(self) -> str:
        """Words what its values should be."""
        return _WORDS[self.form][self.is_list]


def stored_columns(schema: Schema, name: str) -> dict[str, StoredColumn]:
    """Describes the columns of the files behind a column of the schema.

    Args:
        schema: columns and tables.
        name: of the column.

    Returns:
        The column itself by its name; of a derived one its raw inputs, by ``NAME.INPUT``.
    """
    if name in schema.derived:
        forms = {InputKind.ID: Form.ID, InputKind.TIME: Form.TIME}
        return {
            f"{name}.{one.column}": StoredColumn(one.column, forms[one.kind], one.is_list)
            for one in schema.derived[name]
        }
    column = schema.columns[name]
    form = Form.NUMBER if name in schema.bucketed else _form(column)
    return {name: StoredColumn(schema.file_column(name), form, column.kind.is_list)}


def setting_of(schema: Schema, stored: str) -> str:
    """Returns the setting that names a column of the files, for messages.

    Args:
        schema: columns.
        stored: name in the files, of a column that the schema reads.
    """
    name = next(name for name in schema.read_columns if stored in schema.raw_columns(name))
    column = schema.columns[name]
    if column.cross is not None:
        return f"schema.columns.{name}.cross"
    key = "age_of" if column.age_of == stored else "column"
    if isinstance(column, PartColumn):
        return f"schema.sequences.{column.sequence}.{column.sequence_part}.{key}"
    return f"schema.columns.{name}.{key}"


def _form(column: Column) -> Form:
    if column.group in (Group.LABEL, Group.CONVERSION, Group.NEW_USER, Group.NEW_ITEM):
        return Form.FLAG
    if column.group is Group.TASK_LABEL and column.kind is Kind.CATEGORICAL:
        return Form.FLAG
    if column.group is Group.DAY:
        return Form.TIME
    is_number = column.kind in _NUMBERS or column.group is Group.WEIGHT
    return Form.NUMBER if is_number else Form.ID

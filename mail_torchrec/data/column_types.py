"""Logical type of each column, one over all files that ids are read from.

A number and its text have different hashes, and different rows of a vocabulary. So a column has one
logical type over the files of training, test, evaluation and export, and so have the columns that
share a table: otherwise one user would be hidden in one file and not in the other, and one item
would be two.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from mail_torchrec.data.parquet.logical_types import (
    LogicalType,
    element_type,
    logical_type,
    plain_lists,
    plain_values,
)
from mail_torchrec.data.parquet.parquet_file import ParquetFile
from mail_torchrec.data.schema.columns import Column, Group, Kind
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.settings import first_fault
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.safe_paths import read_document

_FILE = "types.json"
_BATCH = 65_536  # rows read at a time where only the values tell a type
_NOTHING = LogicalType.NOTHING
_IDS = {LogicalType.INTEGER, LogicalType.STRING, LogicalType.BOOLEAN}
_FLAGS = {LogicalType.INTEGER, LogicalType.NUMBER, LogicalType.BOOLEAN}
_NUMBERS = {LogicalType.INTEGER, LogicalType.NUMBER}


class ColumnType(NamedTuple):
    """Logical type of a column's values (of a list's elements), and a file that holds such."""

    kind: LogicalType
    file: str


ColumnTypes = dict[str, ColumnType]
"""Types by the columns' names in the schema; numbers and flags are of kind NUMBER."""
_STORED_TYPES = TypeAdapter(ColumnTypes)


def find_column_types(
    files: Iterable[ParquetFile],
    schema: Schema,
    known: Mapping[str, ColumnType],
    names: Iterable[str],
) -> ColumnTypes:
    """Finds the type of every column in files, and checks that it is one.

    Files without rows, and columns without values in a file, have no say, whatever their types.

    Args:
        files: with the schema's columns.
        schema: groups, kinds and tables of the columns.
        known: types of files read before, with which these should agree.
        names: columns of the schema that are read.

    Raises:
        ValueError: a column of a type that its kind does not allow, or of different types in
            different files or on one table; the message names files and types.
    """
    files = [file for file in files if file.num_rows]
    types = {name: _column_type(files, schema, name, known.get(name)) for name in names}
    _check_tables(types, schema)
    of_table = {
        schema.table_of(name): types[name]
        for name in schema.id_columns
        if types[name].kind is not _NOTHING
    }
    for name in schema.id_columns:  # nulls are stored as the ids of their table
        if types[name].kind is _NOTHING:
            types[name] = of_table.get(schema.table_of(name), types[name])
    return types


def plain_table(
    table: pa.Table, schema: Schema, types: Mapping[str, ColumnType], file: str
) -> pa.Table:
    """Converts the columns of a file to plain Arrow types, by their logical types.

    Ids become int64, large_string or bool, lists large lists of those, numbers and flags float64.

    Args:
        table: rows with the files' columns.
        schema: kinds of the columns.
        types: of :func:`find_column_types`.
        file: for messages.

    Raises:
        ValueError: a value that does not fit its type; the message names file and column.
    """
    kinds: dict[str, tuple[LogicalType, bool]] = {}
    for name in types:
        column = schema.columns[name]
        # Where a file column serves as an id and as a number, the id's form holds both.
        if column.kind is not Kind.NUMERIC and not _is_flag(column):
            kinds[schema.file_column(name)] = types[name].kind, column.kind is Kind.LIST
    plain = {}
    for name in table.column_names:
        kind, is_list = kinds.get(name, (LogicalType.NUMBER, False))
        try:
            plain[name] = (plain_lists if is_list else plain_values)(table[name], kind)
        except ValueError as error:
            raise ValueError(f"{file}: column '{name}' {error}") from error
    return pa.table(plain)


def save_column_types(types: Mapping[str, ColumnType], folder: Path) -> None:
    """Writes the types beside the encoders that were fitted on such values."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {name: found._asdict() for name, found in types.items()}
    write_file(folder / _FILE, json.dumps(content, indent=2) + "\n")


def load_column_types(folder: Path) -> ColumnTypes:
    """Reads what :func:`save_column_types` wrote.

    Raises:
        ValueError: the file is missing, damaged, or no regular file.
    """
    try:
        return _STORED_TYPES.validate_json(read_document(folder / _FILE, follow_link=True))
    except ValidationError as error:
        raise ValueError(f"'{folder / _FILE}' is damaged: {first_fault(error)}") from error
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} should hold the types of a run's columns: {error}; was the run directory "
            "copied whole?"
        ) from error


def _column_type(
    files: list[ParquetFile], schema: Schema, name: str, known: ColumnType | None
) -> ColumnType:
    """Finds the type of one column."""
    column, file_column = schema.columns[name], schema.file_column(name)
    first_files: dict[LogicalType | None, ParquetFile] = {}
    for file in files:
        first_files.setdefault(_kind_in(file, file_column, column), file)
    first_files.pop(LogicalType.NOTHING, None)
    if known is not None and known.kind is LogicalType.NOTHING:
        known = None
    is_mixed = len(first_files.keys() | ({known.kind} if known else set())) > 1
    if is_mixed or None in first_files:  # a column without values may be of any type
        first_files = _first_holders(files, file_column, column)
    for kind, file in first_files.items():
        found = file.schema.field(file_column).type
        if kind is None:
            raise ValueError(
                f"{file.path}: column '{file_column}' should be {_expectation(column)}, found "
                f"{found}; cast it there or change its kind in the schema"
            )
        if known is not None and kind is not known.kind:
            raise ValueError(
                f"{file.path}: column '{file_column}' should hold {known.kind} values, as in "
                f"{known.file}, found {found}; {_clash({known.kind, kind})}: cast one of them"
            )
        known = known or ColumnType(kind, file.path)
    return known or ColumnType(LogicalType.NOTHING, files[0].path if files else "no file")


def _clash(kinds: set[LogicalType]) -> str:
    """Says why ids of two types do not stand in one column."""
    if LogicalType.STRING not in kinds:
        return "a column has one type in all files"
    other = "boolean" if LogicalType.BOOLEAN in kinds else "number"
    return f"a {other} and its text are different ids"


def _first_holders(
    files: Iterable[ParquetFile], file_column: str, column: Column
) -> dict[LogicalType | None, ParquetFile]:
    """Finds, for each type, the first file that holds a value of it."""
    holders: dict[LogicalType | None, ParquetFile] = {}
    for file in files:
        kind = _kind_in(file, file_column, column)
        if kind not in holders and _holds_values(file, file_column):
            holders[kind] = file
    return holders


def _kind_in(file: ParquetFile, file_column: str, column: Column) -> LogicalType | None:
    """Returns the type of a column in one file; None where its kind does not allow it."""
    found: pa.DataType | None = file.schema.field(file_column).type
    if _is_flag(column) or column.kind is Kind.NUMERIC:
        kind, allowed = logical_type(found), _FLAGS if _is_flag(column) else _NUMBERS
        return LogicalType.NUMBER if kind in allowed else kind if kind is _NOTHING else None
    if column.kind is Kind.LIST:
        found = element_type(found)
    kind = None if found is None else logical_type(found)
    if kind in _IDS and file.is_known_empty(file_column):
        return _NOTHING
    return kind if kind in _IDS or kind is _NOTHING else None


def _expectation(column: Column) -> str:
    if _is_flag(column):
        return "a boolean or number of 0 and 1"
    if column.kind is Kind.NUMERIC:
        return "a number"
    if column.kind is Kind.LIST:
        return "a list of integers or strings"
    return "an integer, string or boolean (an id)"


def _is_flag(column: Column) -> bool:
    return column.group in (Group.LABEL, Group.CONVERSION, Group.NEW_USER)


def _holds_values(file: ParquetFile, name: str) -> bool:
    for table in file.batches([name], _BATCH):
        values = table[name]
        if element_type(values.type) is not None and not pa.types.is_null(values.type):
            values = pc.list_flatten(values)
        if values.null_count < len(values):
            return True
    return False


def _check_tables(types: Mapping[str, ColumnType], schema: Schema) -> None:
    """Checks that the columns on one table hold ids of one type."""
    first: dict[str, str] = {}
    for name in schema.id_columns:
        if types[name].kind is _NOTHING:
            continue
        table = schema.table_of(name)
        other = first.setdefault(table, name)
        kinds = {_id_kind(types[column].kind) for column in (name, other)}
        if len(kinds) > 1:
            raise ValueError(
                f"{types[name].file}: column '{schema.file_column(name)}' looks up table "
                f"'{table}' with {types[name].kind} ids, column '{schema.file_column(other)}' in "
                f"{types[other].file} with {types[other].kind} ids; cast one, or give the column a "
                "table of its own"
            )


def _id_kind(kind: LogicalType) -> LogicalType:
    """Ids that are booleans are the integers 0 and 1."""
    return LogicalType.INTEGER if kind is LogicalType.BOOLEAN else kind

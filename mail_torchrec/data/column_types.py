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

from mail_torchrec.data.derived.input_types import check_time_inputs
from mail_torchrec.data.parquet.logical_types import (
    LogicalType,
    element_type,
    logical_type,
    plain_lists,
    plain_values,
    plain_vectors,
)
from mail_torchrec.data.parquet.parquet_file import ParquetFile
from mail_torchrec.data.schema.columns import Kind
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.schema.stored_columns import Form, StoredColumn, stored_columns
from mail_torchrec.settings import first_fault
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.safe_paths import read_document

_FILE = "types.json"
_BATCH = 65_536  # rows read at a time where only the values tell a type
_NOTHING = LogicalType.NOTHING


class ColumnType(NamedTuple):
    """Logical type of a column's values (of a list's elements), and a file that holds such."""

    kind: LogicalType
    file: str


ColumnTypes = dict[str, ColumnType]
"""Types by the columns' names in the schema, and of the raw inputs of a derived column by
``NAME.INPUT``; numbers and flags are of kind NUMBER."""
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
    types: ColumnTypes = {}
    for name in names:
        for key, stored in stored_columns(schema, name).items():
            types[key] = _column_type(files, stored, known.get(key))
        if name in schema.derived:
            types[name] = _derived_type(schema, name, types)
    check_time_inputs(files, schema, {key: found.kind for key, found in types.items()})
    _check_tables(types, schema)
    read_ids = [name for name in schema.id_columns if name in types]
    of_table = {
        schema.table_of(name): types[name] for name in read_ids if types[name].kind is not _NOTHING
    }
    for name in read_ids:  # nulls are stored as the ids of their table
        if types[name].kind is _NOTHING:
            types[name] = of_table.get(schema.table_of(name), types[name])
    return types


def plain_table(
    table: pa.Table, schema: Schema, types: Mapping[str, ColumnType], file: str
) -> pa.Table:
    """Converts the columns of a file to plain Arrow types, by their logical types.

    Ids become int64, large_string or bool, lists large lists of those, numbers and flags float64,
    vectors large lists of float64.

    Args:
        table: rows with the files' columns.
        schema: kinds of the columns.
        types: of :func:`find_column_types`.
        file: for messages.

    Raises:
        ValueError: a value that does not fit its type; the message names file and column.
    """
    vectors = {schema.file_column(name) for name in schema.vectors()}
    stored = [item for name in schema.read_columns for item in stored_columns(schema, name).items()]
    kinds: dict[str, tuple[LogicalType, bool]] = {}
    for key, column in sorted(stored, key=lambda item: item[1].form):
        if key in types:
            is_number = column.form <= Form.NUMBER and types[key].kind is not LogicalType.TIME
            kind = LogicalType.NUMBER if is_number else types[key].kind
            kinds[column.column] = kind, column.is_list
    plain = {}
    for name in table.column_names:
        kind, is_list = kinds.get(name, (LogicalType.NUMBER, False))
        try:
            if name in vectors:
                plain[name] = plain_vectors(table[name])
                continue
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
    files: list[ParquetFile], stored: StoredColumn, known: ColumnType | None
) -> ColumnType:
    """Finds the type of one column of the files."""
    first_files: dict[LogicalType | None, ParquetFile] = {}
    for file in files:
        first_files.setdefault(_kind_in(file, stored), file)
    first_files.pop(LogicalType.NOTHING, None)
    if known is not None and known.kind is LogicalType.NOTHING:
        known = None
    is_mixed = len(first_files.keys() | ({known.kind} if known else set())) > 1
    if is_mixed or None in first_files:  # a column without values may be of any type
        first_files = _first_holders(files, stored)
    for kind, file in first_files.items():
        found = file.schema.field(stored.column).type
        if kind is None:
            raise ValueError(
                f"{file.path}: column '{stored.column}' should be {stored.expectation}, found "
                f"{found}; cast it there or change its kind in the schema"
            )
        if known is not None and kind is not known.kind:
            raise ValueError(
                f"{file.path}: column '{stored.column}' should hold {known.kind} values, as in "
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
    files: Iterable[ParquetFile], stored: StoredColumn
) -> dict[LogicalType | None, ParquetFile]:
    """Finds, for each type, the first file that holds a value of it."""
    holders: dict[LogicalType | None, ParquetFile] = {}
    for file in files:
        kind = _kind_in(file, stored)
        if kind not in holders and _holds_values(file, stored.column):
            holders[kind] = file
    return holders


def _kind_in(file: ParquetFile, stored: StoredColumn) -> LogicalType | None:
    """Returns the type of a column in one file; None where its form does not allow it."""
    found: pa.DataType | None = file.schema.field(stored.column).type
    if stored.is_list:
        found = element_type(found)
    kind = None if found is None else logical_type(found)
    if kind is _NOTHING:
        return kind
    if kind not in stored.form.allowed:
        return None
    if stored.form < Form.TIME and kind is not LogicalType.TIME:
        return LogicalType.NUMBER
    return _NOTHING if stored.form is Form.ID and file.is_known_empty(stored.column) else kind


def _derived_type(schema: Schema, name: str, types: Mapping[str, ColumnType]) -> ColumnType:
    """Returns the type of a derived column's values: ages are numbers, all others integers."""
    column = schema.columns[name]
    is_number = column.age_of is not None or column.kind is Kind.NUMERIC or name in schema.bucketed
    file = types[f"{name}.{schema.derived[name][0].column}"].file
    return ColumnType(LogicalType.NUMBER if is_number else LogicalType.INTEGER, file)


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
        if name not in types or types[name].kind is _NOTHING:
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

"""Row groups of Parquet files, checked against the schema when the files are opened."""

import hashlib
import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.dataset as pads

from mail_torchrec.data.parquet.files import parquet_files
from mail_torchrec.data.parquet.parquet_file import ParquetFile
from mail_torchrec.data.schema.columns import Column, Group, Kind
from mail_torchrec.data.schema.schema import Schema


@dataclass(frozen=True)
class RowGroup:
    """One row group of one file."""

    file: int
    """Index of the file among those of the source."""
    index: int
    """Index of the row group in the file."""
    num_rows: int


class Source:
    """Numbers the row groups of the Parquet files below a path, and reads them.

    Args:
        path: a folder, a file, or a URI that ``pyarrow.fs`` opens (``s3://``, ``gs://``,
            ``hdfs://`` ...).
        schema: the columns to read.

    Raises:
        ValueError: nothing there, no rows, an unreadable file, a column that is missing or of a
            wrong type; the message names the file and the column, what was expected and what was
            found.
    """

    def __init__(self, path: str, schema: Schema) -> None:
        self.path = path
        self.columns = sorted({schema.file_column(name) for name in schema.columns})
        self._files = parquet_files(
            path, "set data.root, data.train and data.test to Parquet files or folders"
        )
        self.row_groups = [
            RowGroup(file, group.id, group.num_rows)
            for file, parquet_file in enumerate(self._files)
            for group in _row_groups(parquet_file, schema)
            if group.num_rows
        ]
        self.num_rows = sum(group.num_rows for group in self.row_groups)
        if not self.num_rows:
            raise ValueError(
                f"'{path}' should hold rows: its {len(self._files)} Parquet files hold none"
            )

    @property
    def fingerprint(self) -> str:
        """Checksum over the row counts of all row groups.

        Equal checksums mean most likely equal data, wherever the files lie.
        """
        sizes = [[group.file, group.index, group.num_rows] for group in self.row_groups]
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()

    def file(self, group: RowGroup) -> str:
        """Names the file and the number of a row group, for messages."""
        return f"{self._files[group.file].path}, row group {group.index}"

    def read(self, group: RowGroup) -> pa.Table:
        """Reads one row group's columns.

        Raises:
            ValueError: the file cannot be read (truncated, damaged, deleted).
        """
        return self._files[group.file].read(self.columns, group.index)


def _row_groups(file: ParquetFile, schema: Schema) -> list[pads.RowGroupInfo]:
    names = [schema.file_column(name) for name in schema.columns]
    file.check_columns(names, "add it, or correct schema.columns, whose 'column' names it there")
    for name, column in schema.columns.items():
        _check_type(file, schema.file_column(name), column)
    return file.row_groups


def _check_type(file: ParquetFile, name: str, column: Column) -> None:
    found = file.schema.field(name).type
    expected, fits = _expectation(column, found)
    if not fits:
        raise ValueError(
            f"{file.path}: column '{name}' should be {expected}, found {found}; cast it there or "
            "change its kind in the schema"
        )


def _expectation(column: Column, found: pa.DataType) -> tuple[str, bool]:
    if column.group in (Group.LABEL, Group.CONVERSION, Group.NEW_USER):
        return "a boolean or number of 0 and 1", pa.types.is_boolean(found) or _is_number(found)
    if column.group is Group.GROUP_KEY or column.kind is Kind.CATEGORICAL:
        return "an integer, string or boolean (an id)", _is_id(found)
    if column.kind is Kind.NUMERIC:
        return "a number", _is_number(found)
    return "a list of integers or strings", _is_list(found) and _is_id(found.value_type)


def _is_list(found: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(found)
        or pa.types.is_large_list(found)
        or pa.types.is_fixed_size_list(found)
    )


def _is_number(found: pa.DataType) -> bool:
    return bool(pa.types.is_integer(found) or pa.types.is_floating(found))


def _is_id(found: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type
    return bool(
        pa.types.is_integer(found)
        or pa.types.is_string(found)
        or pa.types.is_large_string(found)
        or pa.types.is_boolean(found)
    )

"""Row groups of Parquet files, checked against the schema when opened, read in plain types."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from mail_torchrec.data.column_types import (
    ColumnType,
    ColumnTypes,
    find_column_types,
    plain_table,
)
from mail_torchrec.data.fingerprint import FileFingerprint, fingerprints
from mail_torchrec.data.padding import check_padding, drop_padding
from mail_torchrec.data.parquet.files import parquet_files
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.utils.uris import without_credentials

PIECE_ROWS = 16_384
"""Rows of a large row group that are decoded at a time, at most."""


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
        types: types of the columns in the files of training; the first source of a run, without
            them, decides them.
        remedy: what to do where the path does not exist, if it was not given by the configuration.

    Raises:
        ValueError: nothing there, no rows, an unreadable file, a column that is missing or of a
            wrong type; the message names the file and the column, what was expected and what was
            found.
    """

    def __init__(
        self,
        path: str,
        schema: Schema,
        types: Mapping[str, ColumnType] | None = None,
        remedy: str | None = None,
    ) -> None:
        self.path = without_credentials(path)
        self.columns = sorted({schema.file_column(name) for name in schema.columns})
        self._files = parquet_files(
            path, remedy or "set data.root, data.train and data.test to Parquet files or folders"
        )
        self.row_groups = [
            RowGroup(file, group.id, group.num_rows)
            for file, parquet_file in enumerate(self._files)
            for group in parquet_file.row_groups
            if group.num_rows
        ]
        self.num_rows = sum(group.num_rows for group in self.row_groups)
        if not self.num_rows:
            raise ValueError(
                f"'{self.path}' should hold rows: its {len(self._files)} Parquet files hold none"
            )
        self._schema = schema
        self.types = self._check_columns(types or {})

    def _check_columns(self, known: Mapping[str, ColumnType]) -> ColumnTypes:
        """Checks the columns of every file that has rows; the others have no say."""
        files = [file for file in self._files if file.num_rows]
        remedy = "add it, or correct schema.columns, whose 'column' names it in the files"
        for file in files:
            file.check_columns(self.columns, remedy)
        types = find_column_types(files, self._schema, known)
        check_padding(self._schema, types)
        return types

    @cached_property
    def fingerprints(self) -> list[FileFingerprint]:
        """Fingerprints of the columns of each file, the same wherever copies of it lie."""
        return fingerprints(self._files, self.columns)

    def file(self, group: RowGroup) -> str:
        """Names the file and the number of a row group, for messages."""
        return f"{self._files[group.file].path}, row group {group.index}"

    def read(self, group: RowGroup, columns: list[str] | None = None) -> pa.Table:
        """Reads one row group's columns in plain types, padding dropped.

        Args:
            group: of this source.
            columns: some of ``self.columns``; None for all.

        Raises:
            ValueError: the file cannot be read (truncated, damaged, deleted), or a value does not
                fit its column's type.
        """
        return self._plain(
            self._files[group.file].read(columns or self.columns, group.index), group
        )

    def pieces(self, group: RowGroup) -> Iterator[pa.Table]:
        """Reads one row group's columns as :meth:`read` does, ``PIECE_ROWS`` rows at a time.

        The rows of a large row group are never in memory together.

        Raises:
            ValueError: as :meth:`read`.
        """
        if group.num_rows <= PIECE_ROWS:
            yield self.read(group)
            return
        file = self._files[group.file]
        for stored in file.batches(self.columns, PIECE_ROWS, group.index):
            yield self._plain(stored, group)

    def _plain(self, stored: pa.Table, group: RowGroup) -> pa.Table:
        """Converts rows of a row group to plain types, and drops their padding."""
        table = plain_table(stored, self._schema, self.types, self.file(group))
        return drop_padding(table, self._schema)

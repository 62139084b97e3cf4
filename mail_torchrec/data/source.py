"""Row groups of Parquet files, checked against the schema when opened, read in plain types."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import pyarrow as pa

from mail_torchrec.data.column_types import (
    ColumnType,
    ColumnTypes,
    find_column_types,
    plain_table,
)
from mail_torchrec.data.derived.derive import with_derived
from mail_torchrec.data.fingerprint import FileFingerprint, fingerprints
from mail_torchrec.data.padding import check_padding, drop_padding
from mail_torchrec.data.parquet.parquet_file import ParquetFile
from mail_torchrec.data.parquet.selection import DataPart, selected_files, shown
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.data.schema.stored_columns import setting_of
from mail_torchrec.data.validation_split import RowFilter, RowSplit, count_numbers
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_CONSTANTS = {
    Group.GROUP_KEY: pa.scalar(0, pa.int64()),
    Group.DAY: pa.scalar(0, pa.int64()),
    Group.WEIGHT: pa.scalar(1.0),
}
"""Values of columns that are not read, by their groups; 0.0 for others."""

PIECE_ROWS = 16_384
"""Rows of a large row group that are decoded at a time, at most."""
_SPLIT_ROWS = 2**20
"""Rows of which the one column that decides is decoded at a time."""


@dataclass(frozen=True)
class RowGroup:
    """One row group of one file."""

    file: int
    """Index of the file among those of the source."""
    index: int
    """Index of the row group in the file."""
    num_rows: int


@dataclass(frozen=True)
class RowGroupPart:
    """Consecutive pieces of one row group, by default all of them."""

    group: RowGroup
    first: int = 0
    """Number of the first piece, from 0; see :meth:`Source.pieces`."""
    stop: int | None = None
    """Number of the piece behind the last one; None where the row group ends."""

    @property
    def is_whole(self) -> bool:
        """Returns whether these are all pieces."""
        return not self.first and self.stop is None


class Source:
    """Numbers the row groups of the Parquet files below a path, and reads them.

    Args:
        path: a folder, a file, a glob, or a URI that ``pyarrow.fs`` opens (``s3://``, ``gs://``,
            ``hdfs://`` ...); days of a folder; or a list of these.
        schema: the columns to read.
        types: types of the columns in the files of training; the first source of a run, without
            them, decides them.
        remedy: what to do where the path does not exist, if it was not given by the configuration.
        unread: flags and keys of the schema that the files need not have: zeros are read for them.
            Files that are not of training need no positions and no weights: rows weigh 1 then.
        split: tells validation rows from training rows, where these files hold both.

    Raises:
        ValueError: nothing there, no rows, an unreadable file, a column that is missing or of a
            wrong type; the message names the file and the column, what was expected and what was
            found.
    """

    def __init__(
        self,
        path: DataPart,
        schema: Schema,
        types: Mapping[str, ColumnType] | None = None,
        remedy: str | None = None,
        unread: Collection[str] = (),
        split: RowSplit | None = None,
    ) -> None:
        self.path = shown(path)
        self._files = selected_files(
            path, remedy or "set data.root, data.train and data.test to Parquet files or folders"
        )
        if types is not None:
            unread = {*unread, *schema.names(Group.POSITION), *self._absent_weights(schema, unread)}
        self._names = [name for name in schema.read_columns if name not in unread]
        self.columns = sorted({raw for name in self._names for raw in schema.raw_columns(name)})
        self.constants = {
            schema.file_column(name): _CONSTANTS.get(schema.columns[name].group, pa.scalar(0.0))
            for name in unread
            if schema.file_column(name) not in self.columns
        }
        self.has_weights = schema.weight in self._names
        """Whether the rows have weights of their own."""
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
        self.num_stored_rows = self.num_rows
        """Rows of the files; ``num_rows`` are those of them that this source reads."""
        self._schema, self.split = schema, split
        self._filter: RowFilter | None = None
        self._reads_parts = False
        self.types = self._check_columns(types or {})

    def _check_columns(self, known: Mapping[str, ColumnType]) -> ColumnTypes:
        """Checks the columns of every file that has rows; the others have no say."""
        files = [file for file in self._files if file.num_rows]
        for file in files:
            missing = next((name for name in self.columns if name not in file.schema.names), None)
            setting = "" if missing is None else setting_of(self._schema, missing)
            file.check_columns(self.columns, f"add it, or name another in {setting}")
            if self.split is not None:
                file.check_columns([self.split.column], "name another in data.validation.column")
        types = find_column_types(files, self._schema, known, self._names)
        check_padding(self._schema, types)
        return types

    def _absent_weights(self, schema: Schema, unread: Collection[str]) -> list[str]:
        """Returns the column of weights where no file has it, and says so."""
        if schema.weight is None or schema.weight in unread:
            return []
        column = schema.file_column(schema.weight)
        if any(column in file.schema.names for file in self._files if file.num_rows):
            return []
        logger.info("'%s' has no column '%s': each of its rows weighs 1", self.path, column)
        return [schema.weight]

    @cached_property
    def fingerprints(self) -> list[FileFingerprint]:
        """Fingerprints of the columns of each file, the same wherever copies of it lie."""
        splitting = {self.split.column} if self.split is not None else set()
        return fingerprints(self._files, sorted({*self.columns, *splitting}))

    @property
    def schema(self) -> Schema:
        """Columns that are read."""
        return self._schema

    @property
    def files(self) -> list[ParquetFile]:
        """Files, in the order of their names."""
        return self._files

    def file(self, group: RowGroup) -> str:
        """Names the file and the number of a row group, for messages."""
        return f"{self._files[group.file].path}, row group {group.index}"

    def read(self, group: RowGroup, columns: list[str] | None = None) -> pa.Table:
        """Reads one row group's columns in plain types, padding dropped.

        Args:
            group: of this source.
            columns: some of the columns that the schema reads; None for all.

        Raises:
            ValueError: the file cannot be read (truncated, damaged, deleted), or a value does not
                fit its column's type.
        """
        names = self.columns if columns is None else self._stored(columns)
        stored = self._files[group.file].read(self._needed(names), group.index)
        table = self._plain(self._kept(stored, names, group), group)
        return table.select(columns) if columns is not None else self.with_constants(table)

    def whole(self, group: RowGroup) -> pa.Table:
        """Reads all rows of a row group as :meth:`read` does, those that are not kept included.

        Rows of messages are numbered in them.

        Raises:
            ValueError: as :meth:`read`.
        """
        stored = self._files[group.file].read(self.columns, group.index)
        return self.with_constants(self._plain(stored, group))

    def select(self, row_groups: Sequence[RowGroup], kept: RowFilter | None = None) -> "Source":
        """Returns a source of some rows alone.

        Args:
            row_groups: of this source, each with the number of rows that are kept of it.
            kept: chooses them; None keeps the first ones of each row group.
        """
        selected = copy(self)
        selected.row_groups = [group for group in row_groups if group.num_rows]
        selected.num_rows = sum(group.num_rows for group in row_groups)
        selected._filter = kept or self._filter
        selected._reads_parts = True
        return selected

    def count_numbers(self, group: RowGroup) -> dict[int, int]:
        """Counts the rows of a row group by the number that the split gives them."""
        assert self.split is not None
        counts: Counter[int] = Counter()
        for stored in self._files[group.file].batches(
            [self.split.column], _SPLIT_ROWS, group.index
        ):
            numbers_R = self.split.numbers(stored, self.types, self.file(group))
            counts.update(count_numbers(numbers_R))
        return dict(counts)

    @property
    def is_filtered(self) -> bool:
        """Returns whether rows are left out within row groups."""
        return self._filter is not None

    def pieces(
        self, group: RowGroup, columns: list[str] | None = None, part: RowGroupPart | None = None
    ) -> Iterator[pa.Table]:
        """Reads one row group's columns as :meth:`read` does, ``PIECE_ROWS`` rows at a time.

        The rows of a large row group are never in memory together. Pieces before those of ``part``
        are decoded and dropped.

        Args:
            group: of this source.
            columns: as of :meth:`read`.
            part: of the row group; None for all of it.

        Raises:
            ValueError: as :meth:`read`.
        """
        if group.num_rows <= PIECE_ROWS and not self._reads_parts:
            assert part is None or part.is_whole
            yield self.read(group, columns)
            return
        names = self.columns if columns is None else self._stored(columns)
        batches = self._files[group.file].batches(self._needed(names), PIECE_ROWS, group.index)
        for stored in islice(batches, *((0, None) if part is None else (part.first, part.stop))):
            kept = self._kept(stored, names, group)
            if len(kept):
                table = self._plain(kept, group)
                yield self.with_constants(table) if columns is None else table.select(columns)

    def num_pieces(self, group: RowGroup) -> int:
        """Returns the number of pieces of a row group, 1 for one that is read whole."""
        if group.num_rows <= PIECE_ROWS and not self._reads_parts:
            return 1
        [stored] = (g for g in self._files[group.file].row_groups if g.id == group.index)
        num_rows: int = stored.num_rows
        return -(-num_rows // PIECE_ROWS)

    def _stored(self, columns: list[str]) -> list[str]:
        """Returns the columns of the files that some columns are read or computed from."""
        schema = self._schema
        inputs = {schema.file_column(name): schema.raw_columns(name) for name in schema.derived}
        return list(dict.fromkeys(raw for name in columns for raw in inputs.get(name, [name])))

    def _needed(self, names: list[str]) -> list[str]:
        """Adds the column that the filter reads."""
        if self._filter is None or self._filter.split.column in names:
            return names
        return [*names, self._filter.split.column]

    def _kept(self, stored: pa.Table, names: list[str], group: RowGroup) -> pa.Table:
        """Drops the rows that are not kept, and the column that only the filter reads."""
        if self._filter is None:
            return stored
        mask_R = self._filter.mask(stored, self.types, self.file(group))
        return stored.filter(pa.array(mask_R)).select(names)

    def _plain(self, stored: pa.Table, group: RowGroup) -> pa.Table:
        """Converts rows of a row group to plain types, derives columns, and drops padding."""
        table = plain_table(stored, self._schema, self.types, self.file(group))
        table = with_derived(table, self._schema, self.file(group))
        return drop_padding(table, self._schema)

    def with_constants(self, table: pa.Table) -> pa.Table:
        """Appends the columns that are not read, ``constants``."""
        for name, value in self.constants.items():
            table = table.append_column(name, pa.repeat(value, len(table)))
        return table

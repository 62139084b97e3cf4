"""One Parquet file: its columns, those in its folders' names included, and its row groups."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
import pyarrow.dataset as pads


@dataclass(frozen=True)
class ParquetFile:
    """Reads one Parquet file; every error names the file.

    Args:
        path: path or URI for messages, without credentials.
        fragment: the file.
        partition_values: value of each Hive partition column in the folders' names (``hour=3/``),
            the same for every row of the file.
    """

    path: str
    fragment: pads.ParquetFileFragment
    partition_values: Mapping[str, pa.Scalar] = field(default_factory=dict)

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the file and of its folders' names; where both have one, the file's counts.

        Raises:
            ValueError: the file cannot be read.
        """
        try:
            physical = self.fragment.physical_schema
        except (pa.ArrowException, OSError) as error:
            raise unreadable_file(self.path, error) from error
        for name, value in self._partition_columns(physical.names):
            physical = physical.append(pa.field(name, value.type))
        return physical

    @property
    def row_groups(self) -> list[pads.RowGroupInfo]:
        """Row groups of the file.

        Raises:
            ValueError: the file cannot be read.
        """
        try:
            return list(self.fragment.row_groups)
        except (pa.ArrowException, OSError) as error:
            raise unreadable_file(self.path, error) from error

    @property
    def num_rows(self) -> int:
        """Rows of all row groups."""
        return sum(group.num_rows for group in self.row_groups)

    def check_columns(self, columns: Iterable[str], remedy: str = "add it") -> None:
        """Checks that the file has each of these columns once.

        Args:
            columns: their names in the file.
            remedy: what to do about a missing one, for the message.

        Raises:
            ValueError: a column is missing, or stands twice.
        """
        names = self.schema.names
        for column in columns:
            if column not in names:
                raise ValueError(
                    f"{self.path}: column '{column}' is missing (the file has "
                    f"{_some(names)}); {remedy}"
                )
            if (count := names.count(column)) > 1:
                raise ValueError(
                    f"{self.path}: column '{column}' stands {count} times in the file; rename or "
                    "drop all but one"
                )

    def read(self, columns: list[str], row_group: int | None = None) -> pa.Table:
        """Reads columns of one row group, or of the whole file.

        Args:
            columns: their names, each once in the file (:meth:`check_columns`).
            row_group: number of the row group; None for all.

        Raises:
            ValueError: the file cannot be read (truncated, damaged, deleted).
        """
        fragment = self.fragment
        if row_group is not None:
            fragment = fragment.subset(row_group_ids=[row_group])
        try:
            # Reader processes read in parallel already; threads within them only wait for each
            # other.
            table = fragment.to_table(columns=self._stored(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise unreadable_file(self.path, error) from error
        return self._with_partition_columns(table, columns)

    def batches(self, columns: list[str], batch_size: int) -> Iterator[pa.Table]:
        """Reads columns a batch at a time; batches without rows are skipped.

        Args:
            columns: their names, each once in the file (:meth:`check_columns`).
            batch_size: maximum number of rows of a batch.

        Raises:
            ValueError: the file cannot be read (truncated, damaged, deleted).
        """
        stored = self.fragment.to_batches(columns=self._stored(columns), batch_size=batch_size)
        while True:
            try:
                batch = next(stored, None)
            except (pa.ArrowException, OSError) as error:
                raise unreadable_file(self.path, error) from error
            if batch is None:
                return
            if len(batch):
                yield self._with_partition_columns(pa.Table.from_batches([batch]), columns)

    def _stored(self, columns: list[str]) -> list[str]:
        physical = set(self.fragment.physical_schema.names)
        return [name for name in columns if name in physical]

    def _with_partition_columns(self, table: pa.Table, columns: list[str]) -> pa.Table:
        for name, value in self._partition_columns(table.column_names):
            if name in columns:
                table = table.append_column(name, pa.repeat(value, len(table)))
        return table.select(columns)

    def _partition_columns(self, stored: list[str]) -> list[tuple[str, pa.Scalar]]:
        return [item for item in self.partition_values.items() if item[0] not in stored]


def unreadable_file(file: str, error: Exception) -> ValueError:
    """Makes the error to raise where a file cannot be read as Parquet."""
    return ValueError(
        f"{file} cannot be read as Parquet (truncated, damaged, another format?): {error}; write "
        "it anew or take it out"
    )


def _some(names: list[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")

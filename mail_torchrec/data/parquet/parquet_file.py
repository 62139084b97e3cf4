"""One Parquet file: its columns, those in its folders' names included, and its row groups."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from mail_torchrec.data.parquet.access import reading
from mail_torchrec.data.parquet.hive import folder_of_column

_READ_BYTES = 4 << 20  # of a column at a time


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
        with reading(self.path):
            physical = self.fragment.physical_schema
        for name, value in self._partition_columns(physical.names):
            physical = physical.append(pa.field(name, value.type))
        return physical

    @property
    def row_groups(self) -> list[pads.RowGroupInfo]:
        """Row groups of the file.

        Raises:
            ValueError: the file cannot be read.
        """
        with reading(self.path):
            return list(self.fragment.row_groups)

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
                raise ValueError(self._missing(column, names, remedy))
            if (count := names.count(column)) > 1:
                raise ValueError(
                    f"{self.path}: column '{column}' stands {count} times in the file; rename or "
                    "drop all but one"
                )

    def is_known_empty(self, column: str) -> bool:
        """Returns True where the file's footer says that a column is all nulls or empty lists.

        Raises:
            ValueError: the file cannot be read.
        """
        if column in self.partition_values and column not in self.fragment.physical_schema.names:
            return not self.partition_values[column].is_valid
        with reading(self.path):
            metadata = self.fragment.metadata
        names = self.fragment.physical_schema.names
        paths = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
        leaves = [leaf for leaf, path in enumerate(paths) if column_of_leaf(path, names) == column]
        chunks = (
            metadata.row_group(group).column(leaf)
            for group in range(metadata.num_row_groups)
            for leaf in leaves
        )
        return all(
            chunk.statistics is not None and chunk.statistics.null_count == chunk.num_values
            for chunk in chunks
        )

    def _missing(self, column: str, names: list[str], remedy: str) -> str:
        message = f"{self.path}: column '{column}' is missing (the file has {_some(names)}); "
        if (folder := folder_of_column(self.path, column)) is None:
            return message + remedy
        above = self.path.rpartition(f"/{folder}/")[0] or "."
        return message + (
            f"it stands in the name of the folder '{folder}', and columns are read from the names "
            f"of folders below the path that is named: name '{above}'"
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
        with reading(self.path, row_group):
            if row_group is not None:
                fragment = fragment.subset(row_group_ids=[row_group])
            # Reader processes read in parallel already; threads within them only wait for each
            # other.
            table = fragment.to_table(columns=self._stored(columns), use_threads=False)
        return self._with_partition_columns(table, columns)

    def batches(
        self, columns: list[str], batch_size: int, row_group: int | None = None
    ) -> Iterator[pa.Table]:
        """Reads columns a batch at a time; batches without rows are skipped.

        A row group is decoded as far as it is read: it is never in memory whole. No batch has rows
        of two row groups: Arrow (26.0) cannot read lists of dictionaries across them.

        Args:
            columns: their names, each once in the file (:meth:`check_columns`).
            batch_size: maximum number of rows of a batch.
            row_group: number of the row group; None for all.

        Raises:
            ValueError: the file cannot be read (truncated, damaged, deleted).
        """
        with reading(self.path):
            # A fragment's own batches are cut from whole decoded row groups, and `pre_buffer` holds
            # all compressed pages of one.
            file = pq.ParquetFile(
                self.fragment.open(),
                metadata=self.fragment.metadata,
                buffer_size=_READ_BYTES,
                pre_buffer=False,
            )
        groups = range(file.num_row_groups) if row_group is None else [row_group]
        names = self._stored(columns)
        batches = chain.from_iterable(
            file.iter_batches(batch_size, [group], names, use_threads=False) for group in groups
        )
        while True:
            with reading(self.path, row_group):
                batch = next(batches, None)
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


def column_of_leaf(path: str, names: list[str]) -> str:
    """Finds the column of a leaf: the values of a list lie in ``history.list.element``."""
    return max(
        (name for name in names if path == name or path.startswith(f"{name}.")), key=len, default=""
    )


def _some(names: list[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")

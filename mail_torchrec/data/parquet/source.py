"""Parquet files, local or remote, as a numbered sequence of row groups, checked against the schema when opened."""

import hashlib
import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from mail_torchrec.data.schema.schema import Column, Group, Kind, Schema


@dataclass(frozen=True)
class RowGroup:
    """One row group of one file."""

    file: int
    index: int
    num_rows: int


class Source:
    """The Parquet files below a path.

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
        self._fragments = parquet_files(
            path, "set data.root, data.train and data.test to Parquet files or folders"
        )
        self.row_groups = [
            RowGroup(file, group.id, group.num_rows)
            for file, fragment in enumerate(self._fragments)
            for group in _row_groups(fragment, schema)
            if group.num_rows
        ]
        self.num_rows = sum(group.num_rows for group in self.row_groups)
        if not self.num_rows:
            raise ValueError(
                f"'{path}' should hold rows: its {len(self._fragments)} Parquet files hold none"
            )

    @property
    def fingerprint(self) -> str:
        """A checksum over the number of rows of each row group: the same rows are likely the same data, wherever they lie."""
        sizes = [[group.file, group.index, group.num_rows] for group in self.row_groups]
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()

    def file(self, group: RowGroup) -> str:
        """Where a row group lies, for messages: file and number."""
        return f"{self._fragments[group.file].path}, row group {group.index}"

    def read(self, group: RowGroup) -> pa.Table:
        """Reads one row group's columns.

        Raises:
            ValueError: the file cannot be read (truncated, damaged, gone).
        """
        try:
            # Reader processes are what reads side by side; threads within them only wait for each
            # other.
            return (
                self._fragments[group.file]
                .subset(row_group_ids=[group.index])
                .to_table(columns=self.columns, use_threads=False)
            )
        except (pa.ArrowException, OSError) as error:
            raise unreadable(str(self._fragments[group.file].path), error) from error


def parquet_files(path: str, remedy: str) -> list[pads.ParquetFileFragment]:
    """The Parquet files below a path or URI, in the order of their names.

    Args:
        path: as :class:`Source` takes it.
        remedy: what to do where there is nothing.

    Raises:
        ValueError: nothing there, or no Parquet.
    """
    try:
        filesystem, inner = (
            pafs.FileSystem.from_uri(path) if "://" in path else (pafs.LocalFileSystem(), path)
        )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"'{path}' should be a path, or a URI that pyarrow.fs opens (file, s3, gs, hdfs, "
            f"fsspec+...): {error}"
        ) from error
    try:
        dataset = pads.dataset(
            inner, format="parquet", filesystem=filesystem, exclude_invalid_files=False
        )
    except FileNotFoundError as error:
        raise ValueError(f"no data at '{path}': {remedy} ({error})") from error
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    fragments = sorted(dataset.get_fragments(), key=lambda fragment: str(fragment.path))
    if not fragments:
        raise ValueError(f"'{path}' should hold Parquet files: it holds none")
    return fragments


def _row_groups(fragment: pads.ParquetFileFragment, schema: Schema) -> list[pads.RowGroupInfo]:
    try:
        physical, groups = fragment.physical_schema, fragment.row_groups
    except (pa.ArrowException, OSError) as error:
        raise unreadable(str(fragment.path), error) from error
    for name, column in schema.columns.items():
        _check_type(str(fragment.path), physical, schema.file_column(name), column)
    return list(groups)


def _check_type(file: str, physical: pa.Schema, name: str, column: Column) -> None:
    if name not in physical.names:
        raise ValueError(
            f"{file}: column '{name}' is missing (the file has {_some(physical.names)}); "
            "add it, or correct schema.columns, whose 'column' names it in the files"
        )
    found = physical.field(name).type
    expected, fits = _expectation(column, found)
    if not fits:
        raise ValueError(
            f"{file}: column '{name}' should be {expected}, found {found}; cast it there or "
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


def unreadable(file: str, error: Exception) -> ValueError:
    """What to raise where a file is no good Parquet."""
    return ValueError(
        f"{file} cannot be read as Parquet (truncated, damaged, another format?): {error}; write "
        "it anew or take it out"
    )


def _some(names: list[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")

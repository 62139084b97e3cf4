"""Finds the files of a table, and the one type that each column has in all of them."""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from mail_torchrec.prepare.events.settings import InputSettings
from mail_torchrec.utils.local_path import check_local

BATCH_ROWS = 65_536
_CSV_ENDINGS = (".csv", ".csv.gz")
_CSV_BLOCK_BYTES = 8 * 2**20
_NULLS = ["", "NULL", "null", "\\N"]
_CSV_TYPES = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us"),
}


@dataclass(frozen=True)
class InputFiles:
    """Files of one table, all Parquet or all CSV.

    Args:
        label: the table's place in the settings, such as ``events.clicks``.
        paths: the files, sorted.
        csv_types: given types of columns of CSV files.
    """

    label: str
    paths: tuple[Path, ...]
    csv_types: dict[str, pa.DataType]

    @property
    def is_csv(self) -> bool:
        """True for CSV, false for Parquet."""
        return _is_csv(self.paths[0])

    @cached_property
    def types(self) -> dict[str, pa.DataType]:
        """Type of each column; integers of unequal width are int64.

        Raises:
            ValueError: a column is missing in a file, or of another type.
        """
        types = dict(self._types_of(self.paths[0]))
        for path in self.paths[1:] if not self.is_csv else ():
            found = self._types_of(path)
            for name, kind in types.items():
                if name not in found:
                    raise ValueError(
                        f"{path}: column '{name}' should be in all files of {self.label}, as in "
                        f"{self.paths[0]}; it is missing here; write it, or name the columns to "
                        f"take under {self.label}.columns"
                    )
                merged = common_type([kind, found[name]])
                if merged is None:
                    raise ValueError(
                        f"{path}: column '{name}' should be {kind}, as in {self.paths[0]}, "
                        f"received {found[name]}; write one type in all files"
                    )
                types[name] = merged
        return types

    def type(self, column: str, role: str) -> pa.DataType:
        """Returns the type of a column.

        Args:
            column: the name in the files.
            role: what asks for it, such as ``events.clicks.time``.

        Raises:
            ValueError: no such column.
        """
        if column not in self.types:
            near = get_close_matches(column, self.types, 1)
            raise ValueError(
                f"{self.paths[0]}: column '{column}' ({role}) should be in the file; it has "
                f"{', '.join(list(self.types)[:20])}; name the right one"
                + (f", perhaps '{near[0]}'" if near else "")
            )
        return self.types[column]

    def batches(self, columns: list[str]) -> Iterator[tuple[Path, int, pa.RecordBatch]]:
        """Yields the columns in pieces: the file, the number of the first row in it, the rows.

        Raises:
            ValueError: a file is no Parquet or CSV of these types.
        """
        for path in self.paths:
            row = 0
            try:
                for batch in self._read(path, columns):
                    yield path, row, batch
                    row += batch.num_rows
            except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
                raise ValueError(f"{path}: {_one_line(error)}; {self._remedy()}") from error

    def _remedy(self) -> str:
        if self.is_csv:
            return f"correct the line, or give the column's type under {self.label}.types"
        return "write the file again"

    def _read(self, path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if not self.is_csv:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(BATCH_ROWS, columns=columns)
            return
        known = {name: self.types[name] for name in columns}
        yield from _open_csv(path, known, columns)

    def _types_of(self, path: Path) -> dict[str, pa.DataType]:
        try:
            if self.is_csv:
                schema = _open_csv(path, self.csv_types, None).schema
            else:
                schema = pq.read_schema(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: {_one_line(error)}; {self._remedy()}") from error
        if repeated := [name for name in schema.names if schema.names.count(name) > 1]:
            raise ValueError(
                f"{path}: column '{repeated[0]}' should stand once, received it "
                f"{schema.names.count(repeated[0])} times; rename one"
            )
        return {field.name: plain_type(field.type) for field in schema}


def find_files(label: str, settings: InputSettings) -> InputFiles:
    """Finds the files of a table.

    Raises:
        ValueError: there are none, files of both formats, a URI, or types of other columns.
    """
    check_local(settings.path, f"{label}.path")
    path = Path(settings.path)
    found = [path] if path.exists() else [Path(name) for name in glob.glob(settings.path)]
    files = sorted(file for entry in found for file in _files_below(entry))
    if not files:
        raise ValueError(
            f"{label}.path: '{settings.path}' should name .parquet, .csv or .csv.gz files, or a "
            "folder with some; none found"
        )
    if len({_is_csv(file) for file in files}) > 1:
        raise ValueError(
            f"{label}.path: '{settings.path}' should hold files of one format, received Parquet "
            "and CSV; name one with a pattern such as *.parquet"
        )
    types = {name: _CSV_TYPES[kind] for name, kind in settings.types.items()}
    if types and not _is_csv(files[0]):
        raise ValueError(
            f"{label}.types: Parquet files have types of their own; leave this out, and write the "
            "files with other types where these are not right"
        )
    table = InputFiles(label, tuple(files), types)
    for name in types:
        table.type(name, f"{label}.types")
    return table


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type without dictionaries, views and large offsets."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(plain_type(kind.value_type))
    return kind


def common_type(types: list[pa.DataType]) -> pa.DataType | None:
    """Returns the one type that values of all these types have, None where there is none."""
    first = types[0]
    if all(kind == first for kind in types):
        return first
    if all(pa.types.is_integer(kind) and kind != pa.uint64() for kind in types):
        return pa.int64()
    if all(pa.types.is_floating(kind) for kind in types):
        return pa.float64()
    if all(pa.types.is_timestamp(kind) and kind.tz == first.tz for kind in types):
        return pa.timestamp("us", first.tz)
    return None


def _files_below(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    below = (file for file in path.rglob("*") if file.is_file())
    return [
        file
        for file in below
        if file.name.endswith((".parquet", *_CSV_ENDINGS))
        and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
    ]


def _is_csv(path: Path) -> bool:
    return path.name.endswith(_CSV_ENDINGS)


def _open_csv(
    path: Path, types: dict[str, pa.DataType], columns: list[str] | None
) -> pacsv.CSVStreamingReader:
    return pacsv.open_csv(
        path,
        # One thread: with more, errors name no row.
        read_options=pacsv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES),
        convert_options=pacsv.ConvertOptions(
            column_types=types,
            include_columns=columns,
            null_values=_NULLS,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

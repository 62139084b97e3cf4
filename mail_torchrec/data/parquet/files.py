"""Parquet files below a path or URI, local or remote."""

from pathlib import PurePosixPath

import pyarrow.dataset as pads
import pyarrow.fs as pafs

from mail_torchrec.data.parquet.delta import delta_files
from mail_torchrec.data.parquet.globs import matches_glob, split_glob
from mail_torchrec.data.parquet.hive import partition_columns
from mail_torchrec.data.parquet.location import Location
from mail_torchrec.data.parquet.parquet_file import ParquetFile
from mail_torchrec.data.parquet.table_formats import (
    DELTA,
    refused_table,
    table_above,
    tables_below,
)
from mail_torchrec.utils.uris import without_credentials


def parquet_files(path: str, remedy: str) -> list[ParquetFile]:
    """Lists the Parquet files below a path or URI, in the order of their names.

    Columns in the names of folders below the path (``hour=3/``) are columns of the files; of a glob
    such as ``log/day=2024-05-*``, of folders below the part without wildcards. Files and folders
    whose names begin with ``.`` or ``_`` are left out, as Spark and Arrow do. A Delta table is read
    by its log.

    Args:
        path: a folder, a file, a glob of these, a Delta table, or a URI that ``pyarrow.fs`` opens
            (``s3://``, ``gs://``, ``hdfs://`` ...).
        remedy: what the user should do where the path does not exist, for the message.

    Raises:
        ValueError: nothing there, no Parquet, no access, or a table whose files are not read.
    """
    base, pattern = split_glob(path)
    location = Location.open(base)
    if pattern and location.holds(pattern):  # a folder's name may have a bracket
        base, pattern = path, ""
        location = Location.open(base)
    try:
        below = location.list_all()
    except FileNotFoundError as error:
        raise ValueError(f"no data at '{location.name}': {remedy}") from error
    if (above := table_above(location)) is not None:
        raise refused_table(f"'{location.name}' lies in '{above[0]}',", above[1])
    matching = [info for info in below if matches_glob(location.below(info.path), pattern)]
    tables = tables_below(location, matching)
    if pattern and (whole := tables_below(location, below).get("")) is not None:
        raise refused_table(f"'{without_credentials(path)}' lies in '{location.name}',", whole)
    if tables.get("") == DELTA:
        files = _delta_table(location)
    elif tables:
        table, table_format = min(tables.items())
        relation = f"holds '{location.name.rstrip('/')}/{table}'," if table else "is"
        raise refused_table(f"'{location.name}' {relation}", table_format)
    else:
        files = _plain_files(location, below, {info.path for info in matching})
    if not files:
        name = without_credentials(path) if pattern else location.name
        raise ValueError(f"'{name}' should hold Parquet files: it holds none; {remedy}")
    return files


def _plain_files(
    location: Location, below: list[pafs.FileInfo], matching: set[str]
) -> list[ParquetFile]:
    found = [
        info
        for info in below
        if info.type == pafs.FileType.File and not _is_hidden(location.below(info.path))
    ]
    columns = partition_columns([location.below(info.path) for info in found])
    return [
        ParquetFile(location.label(info.path), _fragment(location, info.path, info.size), values)
        for info, values in zip(found, columns, strict=True)
        if info.path in matching
    ]


def _delta_table(location: Location) -> list[ParquetFile]:
    root = location.path.rstrip("/")
    return [
        ParquetFile(
            location.label(f"{root}/{file.path}"),
            _fragment(location, f"{root}/{file.path}", file.size),
            file.values,
        )
        for file in delta_files(location)
    ]


def _fragment(location: Location, path: str, size: int) -> pads.ParquetFileFragment:
    return pads.ParquetFileFormat().make_fragment(path, location.filesystem, file_size=size)


def _is_hidden(file: str) -> bool:
    """Returns True for files that engines write beside the data; ``_hour=3/`` is a partition."""
    return any(
        name.startswith(".") or (name.startswith("_") and "=" not in name)
        for name in PurePosixPath(file).parts
    )

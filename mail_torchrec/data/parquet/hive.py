"""Hive partition columns: columns whose values stand in the names of folders (``hour=3/``)."""

import re
from collections.abc import Sequence
from datetime import date
from pathlib import PurePosixPath
from urllib.parse import unquote

import pyarrow as pa

_NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"-?[0-9]{1,19}")


def partition_columns(files: Sequence[str]) -> list[dict[str, pa.Scalar]]:
    """Reads the partition columns of files from the names of their folders.

    A column is int64 where its values in all files are 64-bit integers (``07`` is 7, as Spark and
    Arrow have it), otherwise large_string; null where it has no value at all.

    Args:
        files: paths of all files, below the folder that was named.

    Returns:
        For each file, its value of each of its columns.

    Raises:
        ValueError: a column stands twice in one path, or a name is not UTF-8.
    """
    texts = [_texts(file) for file in files]
    types = {
        name: _common_type([row[name] for row in texts if name in row])
        for name in dict.fromkeys(name for row in texts for name in row)
    }
    return [{name: _scalar(text, types[name]) for name, text in row.items()} for row in texts]


def folder_of_column(file: str, column: str) -> str | None:
    """Finds the folder above a file whose name holds a partition column; None without one."""
    for folder in PurePosixPath(file).parents:
        name, equals, _ = folder.name.partition("=")
        if equals and unquote(name) == column:
            return folder.name
    return None


def day_of_file(file: str, column: str = "day") -> date | None:
    """Reads the day of a file from the folder above it that holds a partition column.

    Args:
        file: whole path.
        column: of the day, as 2024-05-01 or 20240501.

    Returns:
        None where no folder names a day.
    """
    folder = folder_of_column(file, column)
    if folder is None:
        return None
    try:
        return date.fromisoformat(unquote(folder.partition("=")[2]))
    except ValueError:
        return None


def _texts(file: str) -> dict[str, str | None]:
    """Returns the value of each partition column as text; None for null."""
    row: dict[str, str | None] = {}
    for folder in PurePosixPath(file).parent.parts:
        name, equals, value = folder.partition("=")
        if not equals or not name:
            continue
        try:
            name, value = unquote(name, errors="strict"), unquote(value, errors="strict")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: '{folder}' should be UTF-8, percent-encoded") from error
        if name in row:
            raise ValueError(f"{file}: column '{name}' stands twice in the names of its folders")
        row[name] = None if value == _NULL else value
    return row


def _common_type(texts: list[str | None]) -> pa.DataType:
    values = [text for text in texts if text is not None]
    if not values:
        return pa.null()
    is_integer = all(
        _INTEGER.fullmatch(value) and -(2**63) <= int(value) < 2**63 for value in values
    )
    return pa.int64() if is_integer else pa.large_string()


def _scalar(text: str | None, kind: pa.DataType) -> pa.Scalar:
    if text is None:
        return pa.scalar(None, kind)
    return pa.scalar(int(text) if kind == pa.int64() else text, kind)

"""Formats of tables whose log decides which of the files in a folder count."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import PurePosixPath

import pyarrow.fs as pafs

from mail_torchrec.data.parquet.location import Location
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.uris import redact

logger = get_logger(__name__)

DELTA = "Delta"
_FOLDERS = {
    "_delta_log": (DELTA, ".*"),
    "metadata": ("Iceberg", r".*\.metadata\.json(\.gz)?|version-hint\.text"),
    ".hoodie": ("Hudi", ".*"),
    "snapshot": ("Paimon", r"snapshot-\d+|LATEST"),
    "_spark_metadata": ("Spark streaming", ".*"),
}
"""Folder of a table's log -> format of the table, and the names of some files in that folder."""
_HIVE = re.compile(r"(delete_)?delta_\d{7,}_\d{7,}(_\d+)?|base_\d{7,}(_v\d+)?")
"""Folders of the transactions of a Hive table."""


def tables_below(location: Location, below: Iterable[pafs.FileInfo]) -> dict[str, str]:
    """Finds tables at and below a location.

    Args:
        location: what was named.
        below: all files and folders below it.

    Returns:
        Folder of each table, relative to the location (empty: itself) -> its format.
    """
    tables: dict[str, str] = {}
    for info in below:
        parts = PurePosixPath(location.below(info.path)).parts
        for depth, name in enumerate(parts):
            found, file = _FOLDERS.get(name, ("Hive (transactional)", ""))
            is_table = _HIVE.fullmatch(name) or (
                name in _FOLDERS and re.fullmatch(file, "".join(parts[depth + 1 :][:1]))
            )
            if is_table:
                tables.setdefault("/".join(parts[:depth]), found)
    return tables


def table_above(location: Location) -> tuple[str, str] | None:
    """Finds the nearest table that a location lies in; returns its folder and its format."""
    try:
        for folder in location.above():
            logs = location.filesystem.get_file_info([f"{folder}/{name}" for name in _FOLDERS])
            for log, (table_format, file) in zip(logs, _FOLDERS.values(), strict=True):
                if log.type == pafs.FileType.Directory and _holds(location, log.path, file):
                    return folder, table_format
    except Exception as error:  # who may read a folder need not have the right to look above it
        _warn(location.name, redact(str(error)))
    return None


def refused_table(what: str, table_format: str) -> ValueError:
    """Makes the error to raise where the files of a table are not read.

    Args:
        what: the beginning of the message, such as ``'data/day=1' lies in 'data',``.
        table_format: format of the table.
    """
    remedy = "write a snapshot of it as plain Parquet files, and name their folder"
    if table_format == DELTA:
        remedy = f"name the table itself, which is read by its log, or {remedy}"
    return ValueError(
        f"{what} a table of {table_format}, whose log decides which of its files count; {remedy}"
    )


def _holds(location: Location, folder: str, pattern: str) -> bool:
    files = location.filesystem.get_file_info(pafs.FileSelector(folder))
    return pattern == ".*" or any(re.fullmatch(pattern, info.base_name) for info in files)


@cache
def _warn(name: str, reason: str) -> None:
    """Warns once of each location."""
    logger.warning(
        "'%s': the folders above could not be looked into, so whether it lies in a Delta, Iceberg "
        "or Hudi table is not known (%s)",
        name,
        reason,
    )

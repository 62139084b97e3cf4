"""Live files of a Delta table, by its log."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from mail_torchrec.data.parquet.access import reading
from mail_torchrec.data.parquet.location import Location
from mail_torchrec.utils.uris import is_uri, redact

if TYPE_CHECKING:
    from deltalake import DeltaTable

_SNAPSHOT = "write a snapshot of it as plain Parquet files, and name their folder"
_FEATURES = {"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "deletionVectors"}
_FEATURES |= {"typeWidening", "typeWidening-preview", "variantType", "variantType-preview"}
"""Features of a table that leave its files plain Parquet (deletion vectors: where none is left)."""


@dataclass(frozen=True)
class DeltaFile:
    """One live file of a Delta table.

    Args:
        path: relative to the table.
        size: in bytes.
        values: values of the columns that the file may lack: of its partition, and null for those
            that were added to the table later.
    """

    path: str
    size: int
    values: dict[str, pa.Scalar]


def delta_files(location: Location) -> list[DeltaFile]:
    """Lists the live files of the newest version of a Delta table, by path.

    Raises:
        ValueError: the library is missing, the log cannot be read, or the table's files are not all
            of the table (deletion vectors, column mapping, shallow clones ...).
    """
    try:
        import deltalake
    except ImportError as error:
        raise ValueError(
            f"'{location.name}' is a Delta table, and reading its log needs the package deltalake; "
            f"pip install 'mail-torchrec[delta]', or {_SNAPSHOT}"
        ) from error
    with _local_log(location) as folder:
        try:
            table = deltalake.DeltaTable(folder)
            _check_features(location, table)
            actions = pa.table(table.get_add_actions())
            nulls = {
                field.name: pa.scalar(None, field.type)
                for field in pa.schema(table.schema().to_arrow())
            }
        except deltalake.exceptions.DeltaError as error:
            reason = str(error).partition("\n")[0]
            raise _refused(location, f"its log cannot be read ({reason})") from error
    files = [
        DeltaFile(unquote(row["path"]), row["size_bytes"], nulls | row["partition"])
        for row in _rows(actions)
    ]
    for file in files:
        if is_uri(file.path) or file.path.startswith("/"):
            raise _refused(
                location, f"its file {redact(file.path)} lies elsewhere (a shallow clone)"
            )
    return sorted(files, key=lambda file: file.path)


@contextmanager
def _local_log(location: Location) -> Iterator[str]:
    """Yields a local folder with the table's log, so that one client reads the store: Arrow's."""
    if location.is_local:
        yield location.path
        return
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / "_delta_log"
        copy.mkdir()
        with reading(f"'{location.name}', its log"):
            pafs.copy_files(
                f"{location.path}/_delta_log",
                str(copy),
                source_filesystem=location.filesystem,
                destination_filesystem=pafs.LocalFileSystem(),
            )
        yield scratch


def _check_features(location: Location, table: "DeltaTable") -> None:
    """Refuses a table whose files hold other rows or other columns than the table."""
    features = set(table.protocol().reader_features or ())
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mapping != "none" or "columnMapping" in features:
        raise _refused(location, "its files have other column names (column mapping)")
    if other := sorted(features - _FEATURES):
        raise _refused(location, f"its features are not known: {', '.join(other)}")
    if "deletionVectors" in features and _has_deletion_vectors(table):
        raise _refused(
            location,
            "deletion vectors hide rows of its files (REORG TABLE ... APPLY (PURGE) removes them)",
        )


def _has_deletion_vectors(table: "DeltaTable") -> bool:
    import deltalake

    try:
        return bool(pa.table(table.deletion_vectors()).num_rows)
    except deltalake.exceptions.DeltaError:  # its files are not where the log is
        return True


def _rows(actions: pa.Table) -> Iterator[dict[str, Any]]:
    partition = (
        actions["partition"].combine_chunks() if "partition" in actions.column_names else None
    )
    for index, row in enumerate(actions.select(["path", "size_bytes"]).to_pylist()):
        values = partition[index] if partition is not None else {}
        yield row | {"partition": dict(values.items())}


def _refused(location: Location, what: str) -> ValueError:
    return ValueError(f"'{location.name}' is a Delta table that is not read: {what}; {_SNAPSHOT}")

"""Parquet files below a path or URI, local or remote."""

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from mail_torchrec.data.parquet.parquet_file import ParquetFile, unreadable_file


def parquet_files(path: str, remedy: str) -> list[ParquetFile]:
    """Lists the Parquet files below a path or URI, in the order of their names.

    Args:
        path: a folder, a file, or a URI that ``pyarrow.fs`` opens (``s3://``, ``gs://``,
            ``hdfs://`` ...).
        remedy: what the user should do where the path does not exist, for the message.

    Raises:
        ValueError: nothing there, or no Parquet.
    """
    filesystem, inner = _filesystem(path)
    try:
        dataset = pads.dataset(
            inner, format="parquet", filesystem=filesystem, exclude_invalid_files=False
        )
    except FileNotFoundError as error:
        raise ValueError(f"no data at '{path}': {remedy} ({error})") from error
    except (pa.ArrowException, OSError) as error:
        raise unreadable_file(path, error) from error
    fragments = sorted(dataset.get_fragments(), key=lambda fragment: str(fragment.path))
    if not fragments:
        raise ValueError(f"'{path}' should hold Parquet files: it holds none")
    return [ParquetFile(str(fragment.path), fragment) for fragment in fragments]


def _filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """Opens the file system of a path or URI; returns it and the path within it."""
    try:
        return pafs.FileSystem.from_uri(path) if "://" in path else (pafs.LocalFileSystem(), path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"'{path}' should be a path, or a URI that pyarrow.fs opens (file, s3, gs, hdfs, "
            f"fsspec+...): {error}"
        ) from error

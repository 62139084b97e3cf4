"""A path or URI as a file system and a path within it, and the files that lie there."""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

from mail_torchrec.data.parquet.access import unreadable_file
from mail_torchrec.utils.uris import is_uri, redact, without_credentials


@dataclass(frozen=True)
class Location:
    """A folder or file of a file system.

    Args:
        filesystem: local, or an object store.
        path: path within it.
        name: path or URI for messages, without credentials and options.
    """

    filesystem: pafs.FileSystem
    path: str
    name: str

    @classmethod
    def open(cls, path: str) -> "Location":
        """Opens the file system of a path or URI.

        Raises:
            ValueError: it is no path or URI that Arrow opens, or the store refuses.
        """
        if not is_uri(path):
            return cls(pafs.LocalFileSystem(), path, path)
        shown = without_credentials(path).partition("#")[0].partition("?")[0]
        try:
            filesystem, inner = pafs.FileSystem.from_uri(path)
        except (ValueError, ImportError) as error:  # ArrowInvalid is a ValueError
            raise ValueError(
                f"'{shown}' should be a path, or a URI that pyarrow.fs opens (file, s3, gs, abfs, "
                f"hdfs, fsspec+...; a secret in it is percent-encoded): {_reason(error)}"
            ) from error
        except Exception as error:
            raise unreadable_file(f"'{shown}'", error) from error
        return cls(filesystem, inner, shown)

    @property
    def is_local(self) -> bool:
        """True for files of this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def below(self, path: str) -> str:
        """Returns a path of this file system relative to the location."""
        return path.removeprefix(self.path).lstrip("/")

    def label(self, path: str) -> str:
        """Returns the name for messages of a path at or below the location."""
        relative = self.below(path)
        return f"{self.name.rstrip('/')}/{relative}" if relative else self.name

    def above(self) -> list[str]:
        """Lists the folders above, the nearest first; of a local path also behind links."""
        if not self.is_local:
            path = PurePosixPath(self.path)
            return [str(folder) for folder in path.parents if folder.name]
        paths = (Path(os.path.abspath(self.path)), Path(self.path).resolve())
        return list(dict.fromkeys(str(folder) for path in paths for folder in path.parents))

    def holds(self, path: str) -> bool:
        """Returns whether there is a file or folder of this very path below the location."""
        try:
            found = self.filesystem.get_file_info(f"{self.path.rstrip('/')}/{path}")
        except Exception as error:
            raise unreadable_file(f"'{self.name}'", error) from error
        return bool(found.type != pafs.FileType.NotFound)

    def list_all(self) -> list[pafs.FileInfo]:
        """Lists the files and folders below, sorted by path; a file lists itself.

        Raises:
            FileNotFoundError: nothing is there.
            ValueError: something may not be read, or cannot be reached.
        """
        try:
            found = self.filesystem.get_file_info(self.path)
            if found.type == pafs.FileType.File:
                return [found]
            below = self.filesystem.get_file_info(pafs.FileSelector(self.path, recursive=True))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise unreadable_file(f"'{self.name}'", error) from error
        return sorted(below, key=lambda info: info.path)


def _reason(error: Exception) -> str:
    """Returns Arrow's reason without the URI that it repeats."""
    return redact(str(error).rpartition(" due to ")[2])

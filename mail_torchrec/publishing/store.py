"""Folder of published files, in an object store or on a disk."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow.fs as pafs

from mail_torchrec.data.parquet.access import store_advice
from mail_torchrec.data.parquet.location import Location
from mail_torchrec.inference.artifact_files import FileInfo
from mail_torchrec.publishing.pointer import POINTER, Pointer
from mail_torchrec.utils.local_path import check_local
from mail_torchrec.utils.run_files import atomic_file, named_errors
from mail_torchrec.utils.uris import is_uri, redact

_FILE_SYSTEMS = {"local", "s3", "gcs", "abfs"}
"""Types of Arrow's file systems where a file is there whole or not at all."""
_CHUNK = 8 * 2**20
_MAX_POINTER = 64 * 2**20


@dataclass(frozen=True)
class Store:
    """Folder of an object store or of this machine.

    Args:
        location: the folder.
    """

    location: Location

    @classmethod
    def open(cls, path: str, option: str) -> Self:
        """Opens a folder; nothing has to be there.

        Args:
            path: path or URI, which may have credentials.
            option: that it was given by.

        Raises:
            ValueError: it is no path or URI that Arrow opens, or of a store without atomic writes.
        """
        if not path:
            raise ValueError(f"{option} should be a folder or a URI, received ''")
        if not is_uri(path):
            check_local(path, option)
        location = Location.open(path)
        if location.filesystem.type_name not in _FILE_SYSTEMS:
            raise ValueError(
                f"{option} should be a folder, or a URI of an object store (s3, gs, abfs), "
                f"received '{location.name}', whose writes are not atomic; choose another"
            )
        return cls(location)

    @property
    def name(self) -> str:
        """Path or URI for messages, without credentials."""
        return self.location.name.rstrip("/")

    def label(self, file: str) -> str:
        """Returns the name of a file for messages."""
        return f"{self.name}/{file}"

    def pointer(self) -> Pointer | None:
        """Reads the pointer; None where there is none.

        Raises:
            ValueError: it cannot be read, or is damaged.
        """
        content = b""
        try:
            for chunk in self._chunks(POINTER):
                content += chunk
                if len(content) > _MAX_POINTER:
                    raise ValueError(f"'{self.label(POINTER)}' is too large for a pointer")
        except FileNotFoundError:
            return None
        return Pointer.parse(self.label(POINTER), content)

    def write_pointer(self, pointer: Pointer) -> None:
        """Puts a pointer in the place of the one that is there, atomically.

        Raises:
            ValueError: the store refuses, or is not reached.
            OSError: the disk does.
        """
        self._write(POINTER, iter([pointer.model_dump_json(indent=1).encode() + b"\n"]))

    def holds(self, file: str) -> bool:
        """Tells if a file is there.

        Raises:
            ValueError: the store refuses, or is not reached.
        """
        with self._errors(file, "read"):
            found = self.location.filesystem.get_file_info(self._path(file))
        return bool(found.type == pafs.FileType.File)

    def upload(self, source: Path | bytes, file: str, expected: FileInfo) -> bool:
        """Copies a file into the store, unless these bytes are there already.

        Args:
            source: local file, or its content.
            file: its name in the folder.
            expected: its size and checksum.

        Returns:
            True where it was copied.

        Raises:
            ValueError: the store refuses, or is not reached.
            OSError: the file cannot be read, or the disk is full.
        """
        if self._has(file, expected):
            return False
        self._write(file, iter([source]) if isinstance(source, bytes) else _chunks_of(source))
        return True

    def download(
        self, file: str, target: Path, expected: FileInfo, count: Callable[[int], None]
    ) -> None:
        """Copies a file out of the store, and compares it with its checksum.

        Args:
            file: its name in the folder.
            target: local file; only a complete one is left there.
            expected: size and checksum.
            count: called with the number of bytes of each part.

        Raises:
            ValueError: it is not there, is another one, or the store is not reached.
            OSError: the disk is full.
        """
        sha256, size = hashlib.sha256(), 0
        part = target.with_name(f".{target.name}.part")
        try:
            with named_errors(target), part.open("wb") as out:
                for chunk in self._chunks(file):
                    size += len(chunk)
                    if size > expected.bytes:
                        break
                    sha256.update(chunk)
                    out.write(chunk)
                    count(len(chunk))
            if FileInfo(bytes=size, sha256=sha256.hexdigest()) != expected:
                raise ValueError(
                    f"'{self.label(file)}' is not the file that was published (its checksum "
                    "differs); publish the same folder again, which replaces it"
                )
            part.replace(target)
        except FileNotFoundError as error:
            raise ValueError(
                f"'{self.label(file)}' is not there, and {POINTER} leads to it; publish the same "
                "folder again, or a full export"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def _has(self, file: str, expected: FileInfo) -> bool:
        with self._errors(file, "read"):
            found = self.location.filesystem.get_file_info(self._path(file))
        if found.type != pafs.FileType.File or found.size != expected.bytes:
            return False
        sha256 = hashlib.sha256()
        for chunk in self._chunks(file):
            sha256.update(chunk)
        return sha256.hexdigest() == expected.sha256

    def _chunks(self, file: str) -> Iterator[bytes]:
        """Yields the content of a file; FileNotFoundError where it is not there."""
        with self._errors(file, "read"):
            stream = self.location.filesystem.open_input_stream(self._path(file))
        with stream:
            while True:
                with self._errors(file, "read"):
                    chunk = stream.read(_CHUNK)
                if not chunk:
                    return
                yield chunk

    def _write(self, file: str, chunks: Iterator[bytes]) -> None:
        path = self._path(file)
        if self.location.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(Path(path)) as out:
                for chunk in chunks:
                    out.write(chunk)
            return
        with self._errors(file, "written"):
            stream = self.location.filesystem.open_output_stream(path)
        try:
            for chunk in chunks:
                with self._errors(file, "written"):
                    stream.write(chunk)
        finally:  # of a part that failed, this makes a shorter object, which its checksum tells
            with self._errors(file, "written"):
                stream.close()

    def _path(self, file: str) -> str:
        return f"{self.location.path.rstrip('/')}/{file}"

    @contextmanager
    def _errors(self, file: str, done: str) -> Iterator[None]:
        """Names the file in the store's errors, and says what to do about each."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            text = redact(str(error).partition("\n")[0]) or type(error).__name__
            advice = store_advice(error) or "try again, or look after that error"
            raise ValueError(f"'{self.label(file)}' cannot be {done}: {text}; {advice}") from error


def _chunks_of(path: Path) -> Iterator[bytes]:
    with named_errors(path), path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk

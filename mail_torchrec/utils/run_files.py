"""Writes of a run: whole files that replace others atomically, and files that grow by appending.

Every file that a training writes beside its tensors goes through here, so that a full or failing
disk leaves each whole file as it was, and costs growing files nothing but time.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id
from typing import IO, NamedTuple

from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_MAX_WAITING_BYTES = 64 * 2**20


class CurrentWrite(NamedTuple):
    """A write that is under way."""

    since: float
    """Start, on the clock of ``time.monotonic``."""
    path: Path
    thread: int
    """The thread that writes, by the number that the kernel gives it."""


_writes: dict[object, CurrentWrite] = {}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Publishes that the block writes a file or folder, and waits for nothing but its disk."""
    key = object()
    _writes[key] = CurrentWrite(time.monotonic(), path, get_native_id())
    try:
        yield
    finally:
        del _writes[key]


def current_write() -> CurrentWrite | None:
    """Returns what this process began to write last, of what it writes at the moment."""
    return max(_writes.copy().values(), default=None)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yields a file that takes the place of ``path`` when the block succeeds.

    It is a hidden file beside ``path``, and on the disk (fsync) before it is renamed: whatever
    fails, and whenever the process is killed, ``path`` is as it was or complete.

    Raises:
        OSError: it could not be written; with the name of the file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)  # of a killed process that had this number
        with writing(path), part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with writing(path):
            part.replace(path)
            sync_folder(path.parent)
    except BaseException as error:
        _discard(part)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Names a file in the errors of the system that name none, as those of reads and writes.

    Raises:
        OSError: an error within.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a whole file atomically, as :func:`atomic_file` does.

    Raises:
        OSError: it could not be written; the file that was there is unchanged.
    """
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_report_file(path: Path, text: str) -> None:
    """Writes a file of a report atomically, and says so where it replaces an earlier one.

    Raises:
        OSError: it could not be written; the file that was there is unchanged.
    """
    if path.exists():
        logger.info("'%s' is replaced", path)
    write_file(path, text)


def sync_folder(path: Path) -> None:
    """Waits until the names of a folder's files are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(part: Path) -> None:
    """Deletes an unfinished file; the next run deletes it where this fails."""
    try:
        part.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("'%s' could not be deleted: %s", part, error.strerror)


class AppendedFile:
    """Appends to a file; what cannot be written waits in memory for the next attempt.

    A write that fails (full disk, failing network storage) gives one warning and no error, and the
    program goes on. What a failed or killed write left behind the known end is cut off by the next
    one. The file is opened for each write, so that it may be moved or mounted anew meanwhile.

    Args:
        path: the file; its folder is created where it is missing.
        size: bytes at the beginning to keep; what is behind them is cut off.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self._path, self.size = path, size
        """Bytes that are in the file."""
        self._waiting = bytearray()
        self._num_dropped = 0
        self._fails = False
        self._flush()

    def append(self, data: bytes) -> None:
        """Appends data, and what was waiting before it."""
        if len(self._waiting) + len(data) > _MAX_WAITING_BYTES:
            self._num_dropped += len(data)
        else:
            self._waiting += data
        self._flush()

    def close(self) -> None:
        """Writes what is waiting, or warns that it is lost."""
        if self._waiting:
            self._flush()
        if lost := len(self._waiting) + self._num_dropped:
            logger.warning("'%s' lacks its last %d bytes: its disk took none", self._path, lost)

    def _flush(self) -> None:
        try:
            with writing(self._path):
                self._write()
        except OSError as error:
            if not self._fails:
                logger.warning(
                    "'%s' cannot be written (%s): the run goes on, and its records wait in memory "
                    "until it can",
                    self._path,
                    error.strerror,
                )
            self._fails = True
        else:
            if self._fails:
                logger.info("'%s' is written again, and complete", self._path)
            self._fails = False

    def _write(self) -> None:
        """Writes all that is waiting at the known end of the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A link would lead to a file that is not the run's, and a pipe would wait for a reader.
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is no regular file", str(self._path))
            end = os.fstat(descriptor).st_size
            if end > self.size:
                os.ftruncate(descriptor, self.size)
            end = min(end, self.size)  # lower where somebody has emptied the file
            with memoryview(self._waiting) as waiting:
                done = 0
                while done < len(waiting):
                    done += os.pwrite(descriptor, waiting[done:], end + done)
        finally:
            os.close(descriptor)
        self.size = end + done
        self._waiting.clear()

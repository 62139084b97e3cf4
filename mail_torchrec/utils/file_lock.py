"""Exclusive use of a folder by one job, by kernel locks that end with its process."""

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from mail_torchrec.utils.local_path import make_output_dir
from mail_torchrec.utils.spans import span

LOCK = ".lock"
_POLL_SECONDS = 1.0
_MAX_OWNER_BYTES = 4096
# A folder cannot be locked over NFS, where an exclusive lock needs a file that is open for writing.
_NO_FOLDER_LOCK = {errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS}


@contextmanager
def lock_folder(folder: Path, timeout: float = 0.0) -> Iterator[None]:
    """Locks a folder for the block, and creates it where it is missing.

    The locks are the kernel's (``flock`` on ``.lock`` in the folder, and on the folder itself):
    they end with the process, however that ends. The file's holds between hosts over NFS 4, where
    a host that vanished keeps it until the server's lease runs out, a minute or two; Lustre needs
    the mount option ``flock``. The folder's holds even where somebody deletes the file (not over
    NFS). The file names the owner, and is never deleted.

    Args:
        folder: the folder to lock.
        timeout: seconds to wait for an owner that is about to end.

    Raises:
        ValueError: another job holds the lock, the file system has no locks, or ``.lock`` is no
            plain file.
    """
    make_output_dir(folder)
    deadline = time.monotonic() + timeout
    while (descriptors := _try_lock(folder)) is None:
        if time.monotonic() >= deadline:
            raise ValueError(
                f"'{folder}' is in use by another job ({_describe_owner(folder)}); wait for it, "
                "stop it, or choose another folder. The lock ends with that process: there is "
                "nothing to delete"
            )
        with span("waiting for another job"):  # a new one each time: this rank does not hang
            time.sleep(_POLL_SECONDS)
    try:
        _write_owner(descriptors[0], folder / LOCK)
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _try_lock(folder: Path) -> list[int] | None:
    """Locks the file and the folder; returns their descriptors, or None where another job has."""
    descriptors: list[int] = []
    try:
        descriptors.append(_open_file(folder / LOCK))
        _lock(descriptors[0], folder)
        _check_still_there(descriptors[0], folder / LOCK)
        descriptors.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            fcntl.flock(descriptors[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_FOLDER_LOCK:
                raise
    except BaseException as error:
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptors


def _open_file(path: Path) -> int:
    """Opens the lock file, which must not lead elsewhere: its content is replaced."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise ValueError(f"'{path}' should be a plain file; delete it") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"'{path}' should be a plain file; delete it")
    return descriptor


def _lock(descriptor: int, folder: Path) -> None:
    """Locks the file.

    Raises:
        BlockingIOError: another job has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise ValueError(
            f"'{folder}': its file system cannot lock files ({error.strerror}), so two jobs could "
            "write there at once; choose a folder on "
            "another one, or mount it with locks (Lustre: -o flock, NFS: version 4)"
        ) from error


def _check_still_there(descriptor: int, path: Path) -> None:
    """Checks that the file was not replaced between opening and locking it.

    Raises:
        BlockingIOError: it was; another job may have locked the new one.
    """
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
            return
    raise BlockingIOError(errno.EAGAIN, "the lock file was replaced", str(path))


def _write_owner(descriptor: int, path: Path) -> None:
    """Writes into the lock file who holds it."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_owner_record()).encode(), 0)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _owner_record() -> dict[str, str]:
    record = {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return record | {
        name: os.environ[name]
        for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")
        if name in os.environ
    }


def _describe_owner(folder: Path) -> str:
    """Formats what the lock file says of its owner; whatever stands there, on one line."""
    with suppress(OSError, ValueError, RecursionError):
        with (folder / LOCK).open("rb") as file:
            record = json.loads(file.read(_MAX_OWNER_BYTES))
        if isinstance(record, dict) and record:
            text = ", ".join(f"{key} {value}" for key, value in record.items())
            return text if text.isprintable() else repr(text)
    return "it has not said who it is"

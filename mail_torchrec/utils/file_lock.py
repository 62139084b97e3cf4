"""Exclusive use of a folder by one job, by a kernel lock that ends with its process."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from mail_torchrec.utils.local_path import make_output_dir

LOCK = ".lock"
_POLL_SECONDS = 1.0


@contextmanager
def lock_folder(folder: Path, timeout: float = 0.0) -> Iterator[None]:
    """Locks a folder for the block, and creates it where it is missing.

    The lock is the kernel's (``flock`` on ``.lock`` in the folder): it ends with the process,
    however that ends. Over NFS 4 it holds between hosts, and a host that vanished keeps it until
    the server's lease runs out, a minute or two; Lustre needs the mount option ``flock``. The file
    names the owner, and is never deleted.

    Args:
        folder: the folder to lock.
        timeout: seconds to wait for an owner that is about to end.

    Raises:
        ValueError: another job holds the lock, or the file system has no locks.
    """
    make_output_dir(folder)
    with (folder / LOCK).open("a+") as file:
        deadline = time.monotonic() + timeout
        while not _try_lock(file, folder):
            if time.monotonic() >= deadline:
                raise ValueError(
                    f"'{folder}' is in use by another job ({_describe_owner(file)}); wait for it, "
                    "stop it, or choose another folder. The lock ends with that process: there is "
                    "nothing to delete"
                )
            time.sleep(_POLL_SECONDS)
        file.seek(0)
        file.truncate()
        json.dump(_owner_record(), file)
        file.flush()
        yield


def _try_lock(file: IO[str], folder: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ValueError(
            f"'{folder}': its file system cannot lock files ({error.strerror}), so two jobs could "
            "write there at once; choose a folder on "
            "another one, or mount it with locks (Lustre: -o flock, NFS: version 4)"
        ) from error
    return True


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


def _describe_owner(file: IO[str]) -> str:
    file.seek(0)
    text = file.read()
    return (
        ", ".join(f"{key} {value}" for key, value in json.loads(text).items())
        if text
        else "it has not said who it is"
    )

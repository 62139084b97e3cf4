"""Reader processes of a rank: signals, the end of their rank, and what they read at the moment.

They are forked from a fork server, which is a child of the rank and ends with it; they end with the
fork server.
"""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import active_children, forkserver, parent_process
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from threading import current_thread, main_thread
from typing import Any

import torch

from mail_torchrec.distributed.parent import is_orphan, kill_with_parent
from mail_torchrec.utils.current_read import NUM_BYTES, describe_read, publish_reads

_FORK_SERVER_MODULE = "mail_torchrec.distributed.fork_server"
_PID_BYTES = 8
# Python's own; typeshed does not know its fields.
_server: Any = forkserver._forkserver


def start_fork_server(preload: Sequence[str]) -> None:
    """Starts the process that reader processes are forked from, with signals to stop ignored.

    A launcher (or a terminal, by Ctrl-C or when it closes) signals the whole process group of a
    rank, and the training needs its readers until it has stopped.

    Args:
        preload: modules to import once, in the fork server, instead of in each reader process at
            each epoch.
    """
    # The kernel takes the end of the thread that started a process for that of its parent.
    first = [_FORK_SERVER_MODULE] if current_thread() is main_thread() else []
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in signals]  # which is inherited
    warnings = os.environ.get("PYTHONWARNINGS")
    # A rank that is killed, or ended by its watchdog, leaves semaphores to Python's resource
    # tracker, which is started here too. It cleans them up, and need not warn of it.
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (warnings, "ignore:resource_tracker")))
    try:
        forkserver.set_forkserver_preload([*first, *preload])
        forkserver.ensure_running()
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
        if warnings is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = warnings

    Finalize(None, _kill_reader_processes, exitpriority=0)


def _kill_reader_processes() -> None:
    """Kills what is left of them as this process ends, before Python waits for their end.

    One that is stopped (SIGSTOP) once it has read all of an epoch holds up nothing but this.
    """
    for reader in active_children():
        if reader.daemon:
            reader.kill()


@dataclass(frozen=True)
class ReaderProcess:
    """A reader process that has begun."""

    pid: int
    read: str
    """The file that it reads, and since when; empty where it reads none."""


class ReaderProcesses:
    """The reader processes of a loader, as they set themselves up.

    Pickled to the reader processes, as the ``worker_init_fn`` of a ``DataLoader``.

    Args:
        num_workers: their number.
    """

    def __init__(self, num_workers: int) -> None:
        rows = torch.zeros(num_workers, _PID_BYTES + NUM_BYTES, dtype=torch.uint8)
        self._rows = rows.share_memory_()
        _all.append(self)

    def __call__(self, worker: int) -> None:
        """Sets a reader process up, within it."""
        _end_with_rank()
        os.setsid()  # out of the launcher's reach, but not out of the training's
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        row = self._row(worker)
        row[:_PID_BYTES] = os.getpid().to_bytes(_PID_BYTES)
        publish_reads(row[_PID_BYTES:])

    def begun(self) -> list[ReaderProcess]:
        """Lists the processes that were set up; some may have ended."""
        rows = map(self._row, range(len(self._rows)))
        found = [
            ReaderProcess(int.from_bytes(row[:_PID_BYTES]), describe_read(row[_PID_BYTES:]))
            for row in rows
        ]
        return [reader for reader in found if reader.pid]

    def _row(self, worker: int) -> memoryview:
        return memoryview(self._rows[worker].numpy())


_all: list[ReaderProcesses] = []  # one a loader, which is one or two a run


def reader_processes() -> list[ReaderProcess]:
    """Lists the reader processes of all loaders of this process; some may have ended."""
    return [reader for readers in _all for reader in readers.begun()]


def fork_server_pid() -> int | None:
    """Returns the process id of the fork server, once it was started."""
    pid: int | None = _server._forkserver_pid
    return pid


def _end_with_rank() -> None:
    """Ends this reader process with the fork server, and lets the latter end with its rank."""
    kill_with_parent()
    # Python's fork server lives as long as somebody holds this, its children included.
    if _server._forkserver_alive_fd is not None:
        os.close(_server._forkserver_alive_fd)
        _server._forkserver_alive_fd = None
    rank = parent_process()
    # One of them ended before the kernel was asked. The fork server ends with its rank's main
    # thread, and a thread that still writes to a disk keeps the rank's files open.
    if is_orphan() or rank is None or wait([rank.sentinel], timeout=0):
        os._exit(1)

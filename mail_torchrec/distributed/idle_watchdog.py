"""Watchdog over reading and writing: a stuck reader process, file or disk ends the run by name.

Works on one rank as on many, with reader processes and without. Waiting is told from slow work by
processor time and bytes written: a reader that decodes, or a process that starts, uses some; one
that is stopped or waits for a mount that hangs uses none.
"""

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from mail_torchrec.distributed.reader_processes import (
    ReaderProcess,
    fork_server_pid,
    reader_processes,
)
from mail_torchrec.utils.current_read import describe_read
from mail_torchrec.utils.logging import write_unlocked
from mail_torchrec.utils.run_files import current_write
from mail_torchrec.utils.spans import current_span

_POLL_SECONDS = 0.5
_NOTICE_SECONDS = 30.0
# Share of a processor below which nothing is being read or decoded: the threads that watch.
_BUSY = 0.02
_STATES = {
    "T": "is stopped (SIGSTOP)",
    "t": "is stopped (by a debugger)",
    "D": "waits for a disk or a mount",
}
_ENDED = ("Z", "")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class WorkMeter:
    """Tells at intervals whether this rank has worked since the last time."""

    def __init__(self) -> None:
        self._last = time.monotonic(), _processor_seconds(), _written_bytes()

    def has_worked(self) -> bool:
        """Returns whether processor time was used, or bytes were written, since the last call."""
        (since, used, written), self._last = (
            self._last,
            (time.monotonic(), _processor_seconds(), _written_bytes()),
        )
        now, used_now, written_now = self._last
        return used_now - used >= _BUSY * (now - since) or written_now != written


@dataclass(frozen=True)
class _Wait:
    """Something that this rank waits for."""

    since: float
    """Start, on the clock of ``time.monotonic``."""
    what: str
    describe: Callable[[], str]
    """Says who waits, and on which file."""


class IdleWatchdog:
    """Watches from a thread how long this rank waits for data, or for a disk, in vain.

    Args:
        timeout: seconds without data, and without any work on it, after which the run ends.
        end: ends the run with a message.
    """

    def __init__(self, timeout: float, end: Callable[[str], None]) -> None:
        self._timeout, self._end = timeout, end
        self._stopped = Event()
        self._thread = Thread(target=self._watch, name="idle", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        poll = min(_POLL_SECONDS, self._timeout / 8)
        notice = min(_NOTICE_SECONDS, self._timeout / 2)
        meter, since, idle, has_told = WorkMeter(), 0.0, 0.0, False
        while not self._stopped.wait(poll):
            wait, has_worked = _current_wait(), meter.has_worked()
            if wait is None or wait.since != since:
                since, idle, has_told = (0.0 if wait is None else wait.since), 0.0, False
                continue
            # Counted by polls: a host that was suspended meanwhile has waited for nobody.
            idle = 0.0 if has_worked else idle + poll
            if idle >= self._timeout:
                self._end(
                    f"waited {self._timeout:g} s (train.timeout) for {wait.what}: "
                    f"{wait.describe()}; look after that file system or process, then --resume"
                )
                return
            if idle >= notice and not has_told:
                has_told = True
                write_unlocked(
                    f"WARNING: waiting for {wait.what} for {idle:.0f} s in "
                    f"'{current_span().name}': {wait.describe()}; the run ends after "
                    f"{self._timeout:g} s (train.timeout)"
                )


def _current_wait() -> _Wait | None:
    """Returns what this rank waits for, unless it trains or waits for other ranks."""
    span = current_span()
    if span.reads:
        return _Wait(span.since, "data", describe_readers)
    if (write := current_write()) is None:
        return None
    seconds = time.monotonic() - write.since
    said = f"this process (pid {os.getpid()}) writes '{write.path}' for {seconds:.0f} s"
    return _Wait(write.since, "a disk", lambda: said)


def _processor_seconds() -> float:
    """Sums the processor time of this process, its fork server and its reader processes."""
    pids = {reader.pid for reader in reader_processes()} | {fork_server_pid()}
    return time.process_time() + sum(_stat(pid)[1] for pid in pids if pid is not None)


def _written_bytes() -> list[str]:
    """Reads what the main thread and the one that writes have written: returned calls, cache.

    Other threads send to sockets all the time: rank 0 may host the store.
    """
    write = current_write()
    threads = {os.getpid()} | ({write.thread} if write is not None else set())
    found: list[str] = []
    for thread in sorted(threads):
        with suppress(OSError):  # it has ended, or the kernel keeps no account of it
            account = Path(f"/proc/self/task/{thread}/io").read_text()
            found += re.findall(r"^w\w+: (\d+)", account, re.MULTILINE)
    return found


def _stat(pid: int) -> tuple[str, float]:
    """Reads the state of a process, and its processor time in seconds; "" where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def describe_readers() -> str:
    """Describes the readers that are stuck; without reader processes, what this process reads."""
    server = fork_server_pid()
    if server is not None and (state := _stat(server)[0]) in _STATES:
        return f"process {server}, which starts reader processes, {_STATES[state]}"
    readers = [reader for reader in reader_processes() if _stat(reader.pid)[0] not in _ENDED]
    if not readers:
        read = describe_read()
        return f"this process (pid {os.getpid()}) reads {read}" if read else "no file is being read"
    stuck = [reader for reader in readers if reader.read or _stat(reader.pid)[0] in _STATES]
    return "; ".join(map(_describe, stuck or readers))


def _describe(reader: ReaderProcess) -> str:
    state = _STATES.get(_stat(reader.pid)[0], "waits")
    read = f", reading {reader.read}" if reader.read else ""
    return f"reader process {reader.pid} {state}{read}"

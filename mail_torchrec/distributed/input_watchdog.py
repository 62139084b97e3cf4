"""Watchdog over the reading of data: a stuck reader process or file ends the run, with its name.

Works on one rank as on many, with reader processes and without. Waiting is told from slow work by
processor time: a reader that decodes, or a process that starts, uses some; one that is stopped or
waits for a mount that hangs uses none.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from mail_torchrec.distributed.reader_processes import (
    ReaderProcess,
    fork_server_pid,
    reader_processes,
)
from mail_torchrec.utils.current_read import describe_read
from mail_torchrec.utils.logging import write_unlocked
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


class InputWatchdog:
    """Watches from a thread how long the main thread waits for data in vain.

    Args:
        timeout: seconds without data, and without any work on it, after which the run ends.
        end: ends the run with a message.
    """

    def __init__(self, timeout: float, end: Callable[[str], None]) -> None:
        self._timeout, self._end = timeout, end
        self._stopped = Event()
        self._thread = Thread(target=self._watch, name="input", daemon=True)

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
        waiting_since, used, idle, has_told = 0.0, 0.0, 0.0, False
        while not self._stopped.wait(poll):
            span = current_span()
            if not span.reads or span.since != waiting_since:
                waiting_since, idle, has_told = span.since, 0.0, False
                used = _processor_seconds() if span.reads else 0.0
                continue
            used, before = _processor_seconds(), used
            # Counted by polls: a host that was suspended meanwhile has waited for nobody.
            idle = 0.0 if used - before >= _BUSY * poll else idle + poll
            if idle >= self._timeout:
                self._end(
                    f"waited {self._timeout:g} s (train.timeout) for data: {describe_readers()}; "
                    "look after that file system or process, then --resume"
                )
                return
            if idle >= notice and not has_told:
                has_told = True
                write_unlocked(
                    f"WARNING: waiting for data for {idle:.0f} s in '{span.name}': "
                    f"{describe_readers()}; the run ends after {self._timeout:g} s (train.timeout)"
                )


def _processor_seconds() -> float:
    """Sums the processor time of this process, its fork server and its reader processes."""
    pids = {reader.pid for reader in reader_processes()} | {fork_server_pid()}
    return time.process_time() + sum(_stat(pid)[1] for pid in pids if pid is not None)


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

"""Finds all processes of a job, wherever they hang in the process tree, by their environment."""

import time
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from uuid import uuid4

VARIABLE = "SOAK_ID"


@dataclass(frozen=True)
class MarkedProcess:
    """A process that is alive."""

    pid: int
    start: int
    """Clock ticks from the host's start to that of the process; with ``pid`` it is unique."""
    parent: int
    command: str


class Mark:
    """A mark that all descendants of a process inherit, reader processes and orphans included."""

    def __init__(self) -> None:
        self.environment = {VARIABLE: uuid4().hex}
        """To be added to the environment of the first process."""

    def alive(self) -> list[MarkedProcess]:
        """Lists the marked processes; one that ended and was not waited for is not alive.

        Without the fork server of this process itself, and what ``multiprocessing`` adds to it.
        """
        mark = f"{VARIABLE}={self.environment[VARIABLE]}".encode()
        own = {
            getattr(forkserver._forkserver, "_forkserver_pid", None),
            getattr(resource_tracker._resource_tracker, "_pid", None),
        }
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark not in (folder / "environ").read_bytes().split(b"\0"):
                    continue
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has just ended, or is another user's
                continue
            if fields[0] not in "ZX" and int(folder.name) not in own:
                found.append(
                    MarkedProcess(int(folder.name), int(fields[19]), int(fields[1]), command)
                )
        return found

    def wait_until_gone(self, processes: list[MarkedProcess] | None, seconds: float) -> list[str]:
        """Waits until none of these processes is alive, and describes those that still are.

        Args:
            processes: None for all of them, those that begin meanwhile included.
            seconds: after which it gives up.
        """
        end = time.monotonic() + seconds
        known = {(one.pid, one.start) for one in processes or ()}
        while left := [
            one for one in self.alive() if processes is None or (one.pid, one.start) in known
        ]:
            if time.monotonic() > end:
                return [f"{one.pid} (of {one.parent}): {one.command[:120]}" for one in left]
            time.sleep(0.1)
        return []


def fork_server_pids(processes: list[MarkedProcess]) -> set[int]:
    """Returns the fork servers of ranks among the processes of a job, and their forks."""
    return {one.pid for one in processes if "mail_torchrec.distributed.fork_server" in one.command}


def reader_pids(processes: list[MarkedProcess]) -> list[int]:
    """Returns the reader processes among those of a job: forks of a rank's fork server."""
    servers = fork_server_pids(processes)
    return [one.pid for one in processes if one.pid in servers and one.parent in servers]

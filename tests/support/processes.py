"""Commands of the package on several ranks, each a process: as under srun, or under torchrun."""

import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from mail_torchrec.distributed.parent import PARENT_VARIABLE
from tests.support.preloaded import ROOT, PreloadedProcess, command, torchrun


@dataclass
class Ended:
    """A rank that has ended."""

    code: int
    output: str
    """Standard output and error."""


def without_launcher(world_size: int, *arguments: str, timeout: float = 120) -> list[Ended]:
    """``mail-torchrec`` on ranks that nobody looks after; their ends in the order of the ranks.

    They are forked from a process that has imported the package, which is no part of any claim.
    """
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{rank}.log" for rank in range(world_size)]
        ranks = [
            start(list(arguments), log, environment | {"RANK": str(rank)})
            for rank, log in enumerate(logs)
        ]
        end = time.monotonic() + timeout
        for rank in ranks:
            rank.join(max(0.0, end - time.monotonic()))
        late = [number for number, rank in enumerate(ranks) if rank.exitcode is None]
        for rank in ranks:
            rank.kill()
            rank.join()
        outputs = [log.read_text() for log in logs]
    assert not late, f"ranks {late} ran longer than {timeout} s:\n" + "\n=====\n".join(outputs)
    return [Ended(rank.exitcode, output) for rank, output in zip(ranks, outputs, strict=True)]  # type: ignore[arg-type]


class PreloadedPopen:
    """``subprocess.Popen`` of ``python -m mail_torchrec``, as far as `reproduce` uses it."""

    def __init__(
        self,
        words: list[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        env: dict[str, str],
    ) -> None:
        assert words[:3] == [sys.executable, "-m", "mail_torchrec"]
        assert stdin == subprocess.DEVNULL
        assert env.pop(PARENT_VARIABLE) == str(os.getpid())  # a fork server starts it in this case
        streams = (stdout.fileno(), stderr.fileno())
        self._process = PreloadedProcess(command, (words[3:], os.getcwd()), env, *streams)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Of an ended process its exit status."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit status of an ended process."""
        return self._process.exitcode

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self._process.terminate()

    def wait(self, timeout: float | None = None) -> None:
        """Waits for its end."""
        self._process.join(timeout)


def start(
    arguments: list[str], log: Path, environment: dict[str, str] | None = None, cwd: Path = ROOT
) -> PreloadedProcess:
    """Starts ``mail-torchrec`` with these arguments; what it prints goes to the end of the log."""
    with log.open("ab") as file:
        streams = (file.fileno(), file.fileno())
        process = PreloadedProcess(command, (arguments, str(cwd)), environment, *streams)
        process.start()
    return process


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def under_torchrun(
    world_size: int, *arguments: str, options: tuple[str, ...] = (), timeout: float = 180
) -> Ended:
    """``mail-torchrec`` under torchrun on this host, its ranks forks; waits for all of them.

    ``tools/preloaded_torchrun.py`` says what is torchrun's own of it: all but the imports.
    """
    words = ["--standalone", f"--nproc-per-node={world_size}", *options]
    words += ["-m", "mail_torchrec", *arguments]
    reading, writing = os.pipe()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = PreloadedProcess(torchrun, (words, str(ROOT)), environment, writing, writing)
    launcher.start()
    os.close(writing)
    limit = threading.Timer(timeout, launcher.kill)  # with which its ranks end
    limit.start()
    with os.fdopen(reading) as pipe:
        output = pipe.read()
    launcher.join()
    assert limit.is_alive(), f"torchrun ran longer than {timeout} s:\n{output}"
    limit.cancel()
    return Ended(launcher.exitcode, output)  # type: ignore[arg-type]

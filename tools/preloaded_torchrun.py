"""torchrun with its ranks, and other commands, as forks of a process that has imported the trainer.

Fresh interpreters import for several seconds before a rank reads its configuration; forks begin at
once. They run torchrun's own code, the parent of a rank is its torchrun, and each rank starts a
fork server of its own for its reader processes, as ever.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mail_torchrec.distributed.parent import PARENT_VARIABLE

PRELOAD = ["torch.distributed.run", "mail_torchrec.cli", "mail_torchrec.train.trainer"]
PRELOAD += ["matplotlib.backends.backend_agg", "torch.utils.tensorboard"]
SUBPROCESS_OF_TORCHRUN = (
    "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.Popen"
)
"""What to put :class:`ForkedPopen` in the place of."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Preloaded:
    """Program as a fork, with the methods of ``subprocess.Popen``.

    The first one starts the process that all are forked from, in this process's environment.

    Args:
        target: called with the words and the log.
        words: of its command line.
        log: file that its standard error, and that of its children, is appended to.
    """

    def __init__(
        self, target: Callable[[list[str], Path], None], words: list[str], log: Path
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._process = context.Process(target=target, args=(words, log))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.kill: Callable[[], None] = self._process.kill
        self.terminate: Callable[[], None] = self._process.terminate

    @property
    def returncode(self) -> int | None:
        """Exit status, once it has ended."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Returns the exit status, None while it is alive."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end, and returns the exit status.

        Raises:
            subprocess.TimeoutExpired: it is still alive.
        """
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("the fork", timeout or 0)
        return code


class PreloadedTorchrun(Preloaded):
    """``python -m torch.distributed.run``; arguments as there."""

    def __init__(self, words: list[str], log: Path) -> None:
        super().__init__(_run_torchrun, words, log)


class PreloadedCommand(Preloaded):
    """``mail-torchrec`` in one process; arguments as there."""

    def __init__(self, words: list[str], log: Path) -> None:
        super().__init__(_run_command, words, log)


def _run_command(words: list[str], log: Path) -> None:
    _redirect(log)
    os._exit(_run_rank(["mail_torchrec", *words], dict(os.environ)))


def _run_torchrun(words: list[str], log: Path) -> None:
    os.setsid()
    _redirect(log)
    from torch.distributed.run import main

    with patch(SUBPROCESS_OF_TORCHRUN, ForkedPopen):
        main(words)


def _redirect(log: Path) -> None:
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    descriptors = os.open(os.devnull, os.O_WRONLY), os.open(log, appending, 0o644)
    for stream, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, stream)
        os.close(descriptor)


class ForkedPopen(subprocess.Popen[bytes]):
    """A rank: ``python -u -m mail_torchrec ...`` in a fork of torchrun."""

    def _execute_child(self, args: tuple[str, ...], *others: Any) -> None:
        assert args[:4] == (sys.executable, "-u", "-m", "mail_torchrec")
        environment, torchrun = others[5], os.getpid()
        self._child_created = True
        self.pid = os.fork()
        if not self.pid:
            os._exit(_run_rank(list(args[3:]), environment | {PARENT_VARIABLE: str(torchrun)}))


def _run_rank(words: list[str], environment: dict[str, str]) -> int:
    """Runs a rank, as ``multiprocessing`` runs a process; returns its exit status."""
    os.setsid()
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else 0)
    os.closerange(3, 4096)  # torchrun's sockets, and what follows, which this process starts anew
    tracker: Any = resource_tracker._resource_tracker
    server: Any = forkserver._forkserver
    tracker._fd = tracker._pid = server._forkserver_alive_fd = server._inherited_fds = None
    os.environ.clear()
    os.environ |= environment
    sys.argv = words
    code: Any = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    util._exit_function()  # type: ignore[attr-defined]  # ends its reader processes
    threading._shutdown()  # type: ignore[attr-defined]
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)

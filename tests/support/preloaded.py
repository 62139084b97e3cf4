"""Processes forked from one that has torch, TorchRec and the trainer imported: they start in 0.1 s.

A fresh interpreter needs 3 to 6 s for these imports. A fork server of Python's does them once a
test process, on one thread, and forks itself for each process that is asked for. So a process
shares no random state, process group, thread or environment with the one before it.
"""

import gc
import importlib
import os
import runpy
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver, popen_forkserver, reduction
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tools.preloaded_torchrun import SUBPROCESS_OF_TORCHRUN, ForkedPopen

ROOT = Path(__file__).parents[2]
BLANK_PICTURES = "tests.support.blank_pictures"  # imports the trainer, so not above
MODULES = [
    "mail_torchrec.cli",
    "mail_torchrec.train.trainer",
    "matplotlib.backends.backend_agg",
    "pytest",
    "sklearn.metrics",
    "tools.preloaded_torchrun",
    "torch.distributed.run",
    "torch.utils.tensorboard",
    BLANK_PICTURES,
    "tests.support.small_rows",
]
"""What a rank or a command would import."""

_server = forkserver.ForkServer()  # not the one that the trainer's reader processes are forked from
_server.set_forkserver_preload(MODULES)


class PreloadedProcess(ForkServerProcess):
    """A process of ``multiprocessing`` with this environment and these output streams.

    Args:
        target: importable by name, called in the process.
        args: its arguments.
        environment: in the place of this process's.
        output: the file descriptor of its standard output.
        errors: the file descriptor of its standard error.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        environment: Mapping[str, str] | None = None,
        output: int = 1,
        errors: int = 2,
    ) -> None:
        given = dict(os.environ if environment is None else environment)
        streams = (_Stream(output), _Stream(errors))
        super().__init__(target=_forked, args=(target, args, given, streams))

    @staticmethod
    def _Popen(process: Any) -> Any:
        return _Popen(process)


class PreloadedContext(ForkServerContext):
    """In the place of ``multiprocessing.get_context("spawn")``."""

    Process = PreloadedProcess  # type: ignore[assignment]


class _Popen(popen_forkserver.Popen):
    def _launch(self, process: Any) -> None:
        # A process with threads of OpenMP must not be forked.
        with patch.dict(os.environ, OMP_NUM_THREADS="1"):
            _server.ensure_running()
        with patch.object(forkserver, "connect_to_new_process", _server.connect_to_new_process):
            super()._launch(process)


class _Stream:
    """A file descriptor of this process that the forked one takes over."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (reduction.DupFd(self.descriptor),)


def _opened(descriptor: Any) -> _Stream:
    return _Stream(descriptor.detach())


def _forked(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    environment: dict[str, str],
    streams: tuple[_Stream, _Stream],
) -> None:
    for descriptor, stream in enumerate(streams, start=1):
        os.dup2(stream.descriptor, descriptor)
        os.close(stream.descriptor)
    os.environ.clear()
    os.environ |= environment
    gc.freeze()  # what was imported stays
    importlib.import_module(BLANK_PICTURES).leave_pictures_blank()
    target(*args)


def command(arguments: list[str], cwd: str) -> None:
    """``python -m mail_torchrec``; to be called in a preloaded process."""
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    sys.argv = ["mail_torchrec", *arguments]
    runpy.run_module("mail_torchrec", run_name="__main__", alter_sys=True)


def torchrun(words: list[str], cwd: str) -> None:
    """``torchrun`` with forked ranks of the package; to be called in a preloaded process."""
    os.chdir(cwd)
    with patch(SUBPROCESS_OF_TORCHRUN, ForkedPopen):
        importlib.import_module("torch.distributed.run").main(words)

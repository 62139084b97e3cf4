"""SIGTERM: all ranks agree on a step, save there, and exit with 143."""

import os
import signal
import sys
from datetime import timedelta
from multiprocessing import forkserver
from threading import Timer
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from mail_torchrec.distributed.collectives import world_size

EXIT_CODE = 128 + signal.SIGTERM


class StopSignal:
    """Whether the run is to stop, asked after every step. A context manager; outside it SIGTERM ends the process as usual.

    A rank that is told to stop lets the others know by a sum over ranks that is begun after one
    step and looked at after the next, when it has long arrived: so no step waits, and all ranks
    stop behind the same one.

    Args:
        grace: seconds from SIGTERM to the end of the process at the latest.
        timeout: seconds to wait for the other ranks.
    """

    def __init__(self, grace: float, timeout: float) -> None:
        self._grace = grace
        self._told = False
        self._timer: Timer | None = None
        self._before: Any = None
        self._group = (
            dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            if world_size() > 1
            else None
        )
        self._sum, self._work = torch.zeros(1, dtype=torch.int64), None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self._timer is not None:
            self._timer.cancel()

    def is_due(self) -> bool:
        """Whether to stop behind this step; the same on every rank."""
        if self._group is None:
            return self._told
        due = self._arrived()
        self._sum = torch.tensor([int(self._told)])
        self._work = dist.all_reduce(self._sum, group=self._group, async_op=True)
        return due

    def is_due_now(self) -> bool:
        """Behind the last step: whether any rank was told until now."""
        return self.is_due() or (self._group is not None and self._arrived())

    def _arrived(self) -> bool:
        if self._work is None:
            return False
        self._work.wait()
        return bool(self._sum.item())

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self._told:
            self._told = True
            self._timer = Timer(self._grace, self._give_up)
            self._timer.daemon = True
            self._timer.start()

    def _give_up(self) -> None:
        print(
            f"told to stop, and not done within checkpoint.grace={self._grace:g} seconds; "
            "exiting all the same",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_CODE)


def start_fork_server() -> None:
    """Starts the process that reader processes are forked from, with SIGTERM ignored.

    A launcher signals the whole process group of a rank, and the training needs its readers until
    it has stopped. They take the fork server's end for that of the training, so it has to outlive
    the signal; it ends with the training.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a new process inherits
    try:
        forkserver.set_forkserver_preload(
            ["mail_torchrec.train.trainer"]
        )  # else each of them imports PyTorch, at each epoch
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGTERM, before)


def leave_process_group(worker: int) -> None:
    """For reader processes: out of the launcher's reach, but not of the training's, which may have to terminate them."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

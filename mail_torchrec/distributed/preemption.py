"""Preemption by SIGTERM: all ranks agree on a step, save a checkpoint there, and exit with 143."""

import os
import signal
from datetime import timedelta
from threading import Timer
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from mail_torchrec.distributed.collectives import world_size
from mail_torchrec.utils.logging import write_unlocked

EXIT_CODE = 128 + signal.SIGTERM


class PreemptionHandler:
    """Handles SIGTERM: tells the training loop, after every step, whether to stop.

    A context manager; outside of it SIGTERM ends the process as usual. A rank that received the
    signal tells the others by a sum over ranks which is started after one step and read after the
    next one, when it has long arrived: no step waits for it, and all ranks stop after the same one.

    Args:
        grace: seconds from SIGTERM to the end of the process at the latest.
        timeout: seconds to wait for the other ranks.
    """

    def __init__(self, grace: float, timeout: float) -> None:
        self._grace = grace
        self._signalled = False
        self._timer: Timer | None = None
        self._previous_handler: Any = None
        self._group = (
            dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            if world_size() > 1
            else None
        )
        self._num_signalled, self._work = torch.zeros(1, dtype=torch.int64), None

    def __enter__(self) -> Self:
        self._previous_handler = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous_handler)
        if self._timer is not None:
            self._timer.cancel()

    def should_stop(self) -> bool:
        """Returns whether to stop after this step; the same on every rank."""
        if self._group is None:
            return self._signalled
        stop = self._any_rank_signalled()
        self._num_signalled = torch.tensor([int(self._signalled)])
        self._work = dist.all_reduce(self._num_signalled, group=self._group, async_op=True)
        return stop

    def should_stop_after_last_step(self) -> bool:
        """Returns whether any rank has received the signal so far; called after the last step."""
        return self.should_stop() or (self._group is not None and self._any_rank_signalled())

    def _any_rank_signalled(self) -> bool:
        """Waits for the sum that was started last."""
        if self._work is None:
            return False
        self._work.wait()
        return bool(self._num_signalled.item())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._signalled:
            self._signalled = True
            self._timer = Timer(self._grace, self._exit_unsaved)
            self._timer.daemon = True
            self._timer.start()

    def _exit_unsaved(self) -> None:
        write_unlocked(
            f"told to stop, and not done within checkpoint.grace={self._grace:g} seconds; "
            "exiting all the same"
        )
        os._exit(EXIT_CODE)

"""Stop by a signal: all ranks agree on a step, save a checkpoint there, and exit with its code.

SIGTERM comes from a launcher or ``kill``, SIGINT from Ctrl-C, SIGHUP from a terminal that closes.
"""

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from threading import Thread, current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from mail_torchrec.distributed.collectives import rank, world_size
from mail_torchrec.distributed.launcher import started_by_torchrun
from mail_torchrec.utils.logging import get_logger, write_unlocked

logger = get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# One Ctrl-C may come twice: from the terminal, and from a launcher that hands it on.
_SAME_SECONDS = 1.0


class PreemptionHandler:
    """Handles signals to stop: tells the training loop, after every step, whether to.

    A context manager; outside of it the signals do what they did. A signal that the process was
    started to ignore (``nohup``, a script's background job) stays ignored. A rank that received one
    tells the others by a maximum over ranks which is started after one step and read after the next
    one, when it has long arrived: no step waits for it, and all ranks stop after the same one.

    Signals are read by a thread too: the main one may be inside a collective, where Python's
    handlers do not run.

    Args:
        grace: seconds from the signal to the end of the process at the latest.
        timeout: seconds to wait for the other ranks.
        progress: returns the step that was done last, and that of the last checkpoint, if any.
    """

    def __init__(
        self, grace: float, timeout: float, progress: Callable[[], tuple[int, int | None]]
    ) -> None:
        self._grace, self._progress = grace, progress
        self._is_first_rank = rank() == 0
        self._received, self._deadline, self._interrupted_at = 0, float("inf"), float("inf")
        self._previous: dict[int, Any] = {}
        self._group = (
            dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            if world_size() > 1
            else None
        )
        self._agreed, self._work = torch.zeros(1, dtype=torch.int64), None

    def __enter__(self) -> Self:
        if current_thread() is main_thread():  # another one cannot set handlers
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._previous_pipe = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._thread = Thread(target=self._listen, name="signals", daemon=True)
            self._thread.start()
            for number in _SIGNALS:
                if (handler := signal.getsignal(number)) is not signal.SIG_IGN:
                    self._previous[number] = handler
                    signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if current_thread() is main_thread():
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._previous_pipe)
            os.close(self._pipe[1])
            self._thread.join()
            os.close(self._pipe[0])

    @property
    def exit_code(self) -> int:
        """The exit code of a run that was told to stop, by convention: the signal's plus 128."""
        return 128 + (self._received if self._group is None else int(self._agreed.item()))

    def should_stop(self) -> bool:
        """Returns whether to stop after this step; the same on every rank."""
        if self._group is None:
            return self._received > 0
        if self._any_rank_signalled():
            return True
        self._agreed = torch.tensor([self._received])
        self._work = dist.all_reduce(
            self._agreed, dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return False

    def should_stop_after_last_step(self) -> bool:
        """Returns whether any rank has received a signal so far; called after the last step."""
        return self.should_stop() or (self._group is not None and self._any_rank_signalled())

    def _any_rank_signalled(self) -> bool:
        """Waits for the maximum that was started last."""
        if self._work is None:
            return False
        self._work.wait()
        return bool(self._agreed.item())

    def _listen(self) -> None:
        """Reads the signals; ends the process where it must end before it has saved."""
        while True:
            left = None if self._deadline == float("inf") else self._deadline - time.monotonic()
            if not wait([self._pipe[0]], left):
                self._exit_unsaved(
                    f"told to stop, and not done within checkpoint.grace={self._grace:g} seconds; "
                    "exiting all the same"
                )
            numbers = os.read(self._pipe[0], 64)
            if not numbers:  # the other end is closed
                return
            for number in numbers:
                if number in self._previous:  # others have handlers of their own
                    self._on_signal(signal.Signals(number))

    def _on_signal(self, number: signal.Signals) -> None:
        now = time.monotonic()
        # torchrun answers its second Ctrl-C with SIGTERM to its ranks.
        insists = number == signal.SIGINT or started_by_torchrun()
        if insists and now - self._interrupted_at > _SAME_SECONDS:
            self._exit_unsaved("Error: interrupted again, exiting at once")
        if number == signal.SIGINT:
            self._interrupted_at = min(self._interrupted_at, now)
        self._receive(number)
        if self._deadline == float("inf"):
            self._deadline = now + self._grace
            again = "; Ctrl-C again exits at once" if number == signal.SIGINT else ""
            logger.info("told to stop (%s): saving after this step%s", number.name, again)

    def _receive(self, number: int, frame: FrameType | None = None) -> None:
        """Notes the first signal; the main thread itself does where it runs Python."""
        self._received = self._received or int(number)

    def _exit_unsaved(self, why: str) -> None:
        if self._is_first_rank:
            write_unlocked(f"{why}: {self._losses()}")
        os._exit(128 + self._received)

    def _losses(self) -> str:
        """Says what is lost if the process ends now."""
        done, saved = self._progress()
        if saved is None:
            return f"the {done} steps so far are lost, no checkpoint is written yet"
        lost = f"{done - saved} steps are lost" if done > saved else "nothing is lost"
        return f"{lost}, --resume goes on after step {saved}"

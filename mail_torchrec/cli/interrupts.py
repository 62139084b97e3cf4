"""Ctrl-C (SIGINT): a command ends with one line and exit code 130.

From its first step to its last a training handles it instead (``distributed/preemption.py``).
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from mail_torchrec.utils.logging import write_unlocked

EXIT_CODE = 128 + signal.SIGINT


class InterruptHandler:
    """Handles SIGINT: the first raises KeyboardInterrupt, another one ends the process at once.

    A context manager. Libraries turn the first into errors of their own (a cancelled query, a
    reader process that is gone); ``received`` tells them from other errors. A process that was
    started with SIGINT ignored (``nohup``, a script's background job) goes on ignoring it.
    """

    def __init__(self) -> None:
        self.received = False
        self.describe_losses: Callable[[], str] = str
        """Says what an interrupt costs, set by the command; by default nothing."""
        self._previous_handler: Any = None

    def __enter__(self) -> Self:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous_handler = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)

    def message(self) -> str:
        """Formats the line that the command ends with."""
        losses = self.describe_losses()
        return f"Error: interrupted{losses and ': '}{losses}"

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            write_unlocked("Error: interrupted again; exiting at once")
            os._exit(EXIT_CODE)
        self.received = True
        raise KeyboardInterrupt

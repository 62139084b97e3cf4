"""Progress bars on a terminal, plain lines at an interval everywhere else."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, Any

from tqdm import tqdm

_TERMINAL_SECONDS, _LINE_SECONDS = 0.2, 10.0
_LINE_FORMAT = "{l_bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    total: float | None = None,
    initial: int = 0,
    leave: bool = False,
    disable: bool = False,
    unit_scale: bool = False,
) -> "tqdm[Any]":
    """Makes a progress bar on standard error.

    Where standard error is no terminal (TorchX, Slurm, a file), whole lines are printed every 10
    seconds instead of carriage returns. A bar that leaves nothing behind prints none there unless
    it lasts that long.

    Args:
        items: to go through; None for a bar that is moved by ``update()``.
        desc: name of the work.
        unit: name of what is counted.
        total: number of units; by default the length of ``items``.
        initial: units done before.
        leave: whether the finished bar stays visible.
        disable: whether nothing is shown, as on all ranks but rank 0.
        unit_scale: whether counts are shortened (12.3k).
    """
    options: dict[str, Any] = {"mininterval": _TERMINAL_SECONDS, "dynamic_ncols": True}
    if not is_terminal():
        options = {
            "mininterval": _LINE_SECONDS,
            "delay": 0 if leave else _LINE_SECONDS,
            "bar_format": _LINE_FORMAT,
            "file": _LineWriter(sys.stderr),
        }
    return tqdm(
        items,
        desc=desc,
        unit=unit,
        total=total,
        initial=initial,
        leave=leave,
        disable=disable,
        unit_scale=unit_scale,
        **options,
    )


def is_terminal() -> bool:
    """Returns whether standard error is a terminal."""
    return sys.stderr.isatty()


def refresh_seconds() -> float:
    """Returns the seconds between two updates of what progress bars show."""
    return _TERMINAL_SECONDS if is_terminal() else _LINE_SECONDS


class _LineWriter:
    """Turns tqdm's carriage returns and cursor moves into whole lines of a stream."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", "utf-8")

    def write(self, text: str) -> None:
        """Writes the text as one line; cursor moves and blanks are dropped."""
        if line := text.replace("\x1b[A", "").strip():
            with suppress(OSError):  # a full disk that holds the log file
                self._stream.write(f"{line}\n")

    def flush(self) -> None:
        """Flushes the stream."""
        with suppress(OSError):
            self._stream.flush()

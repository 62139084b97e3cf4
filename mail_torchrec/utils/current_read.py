"""The file that a process reads at the moment, in memory that another process can look at."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

NUM_BYTES = 512
"""Length of the memory."""

_memory = memoryview(bytearray(NUM_BYTES))


def publish_reads(memory: memoryview) -> None:
    """Publishes this process's reads in other memory from now on.

    Args:
        memory: ``NUM_BYTES`` writable bytes.
    """
    global _memory
    _memory = memory


@contextmanager
def publish_read(file: str) -> Iterator[None]:
    """Publishes that the block reads a file; threads that read at once overwrite each other.

    Args:
        file: for messages, without credentials.
    """
    _write(f"{time.monotonic():.1f} {file}")
    try:
        yield
    finally:
        _write("")


def describe_read(memory: memoryview | None = None) -> str:
    """Says which file is being read, and since when; empty where none is.

    Args:
        memory: of another process; None for this process's own.
    """
    text = bytes(_memory if memory is None else memory).rstrip(b"\0").decode(errors="replace")
    found = re.fullmatch(r"(\d+\.\d) (.+)", text)  # not while it is being written
    # The clock is the same in all processes of a host.
    return f"'{found[2]}' for {time.monotonic() - float(found[1]):.0f} s" if found else ""


def _write(text: str) -> None:
    _memory[:] = text.encode()[:NUM_BYTES].ljust(NUM_BYTES, b"\0")

"""What this process is busy with, in words: errors and other ranks tell it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Span:
    """A stretch of work."""

    name: str = ""
    patient: bool = False
    """Whether it may take longer than a collective may: rank 0 reading all of the training data,
    say."""
    since: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self.since


_current = Span()


def current_span() -> Span:
    """The innermost phase of the main thread; after an error, the one that it was raised in."""
    return _current


def reset_spans() -> None:
    """Starts anew, as after an error that the process outlived."""
    global _current
    _current = Span()


@contextmanager
def span(name: str, *, patient: bool = False) -> Iterator[None]:
    """Names what the main thread does in the block, behind what it does around it: ``training, step 12, reading``.

    Costs about a microsecond; other threads may look at any time.
    """
    global _current
    outer = _current
    _current = Span(f"{outer.name}, {name}" if outer.name else name, patient or outer.patient)
    yield
    # Not in a `finally`: an error is told with the phase that it was raised in.
    _current = Span(outer.name, outer.patient)

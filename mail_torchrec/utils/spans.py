"""Named spans of work, shared by the watchdog, ``torch.profiler`` and the benchmark.

A span names what the main thread does. Errors and the watchdog of other ranks report the nested
names (``training, epoch 1, step 12, backward``), a running ``torch.profiler`` shows each span as a
range, and :func:`collect_spans` sums their wall-clock time. This module imports no torch, since
torch-free code opens spans too.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from threading import current_thread, main_thread
from typing import Any

STEP_SPANS = (
    "input",
    "lookup",
    "zero_shot",
    "ranking",
    "backward",
    "optimizer",
    "communication",
)
"""Spans of a training step: waiting for a batch, embedding lookup, the zero-shot and the ranking
tower, the backward pass (with the fused update of sharded tables), the other optimizers, and the
collectives that this package starts itself."""
_COLLECTIVES = "communication"


@dataclass(frozen=True)
class Span:
    """One stretch of work of the main thread."""

    name: str = ""
    """Names of all open spans, the outermost first, joined by ``", "``."""
    patient: bool = False
    """True where the work may take longer than a collective may wait, as when rank 0 reads all of
    the training data."""
    reads: bool = False
    """True where the main thread waits for data: files or reader processes."""
    collective: bool = False
    """True where the main thread may wait for other ranks, or for a device that does."""
    since: float = field(default_factory=time.monotonic)
    """Start, on the clock of ``time.monotonic``."""

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.since


class _SpanClock:
    """Sums the self time of spans: each moment counts for the innermost open span alone."""

    def __init__(self, device: Any, seconds: defaultdict[str, float]) -> None:
        self.seconds = seconds
        self._synchronises = getattr(device, "type", "cpu") == "cuda"
        self._open: list[str] = []
        self._since = time.perf_counter()

    def enter(self, name: str) -> None:
        """Counts from here on for a nested span."""
        self._count()
        self._open.append(name)

    def leave(self) -> None:
        """Counts from here on for the span around it."""
        self._count()
        self._open.pop()

    def _count(self) -> None:
        if self._synchronises:
            sys.modules["torch"].cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


_current = Span()
_clock: _SpanClock | None = None


def current_span() -> Span:
    """Returns the innermost span of the main thread; after an error, the one it was raised in."""
    return _current


def reset_spans() -> None:
    """Forgets all open spans, as after an error that the process survived."""
    global _current
    _current = Span()


@contextmanager
def span(
    name: str,
    number: int | None = None,
    *,
    patient: bool = False,
    reads: bool = False,
    collective: bool = False,
) -> Iterator[None]:
    """Opens a named span for the block.

    Costs a few microseconds while no profiler and no collector runs. In other threads than
    the main one it is a profiler range only.

    Args:
        name: the span's own name; errors tell it behind the names of the spans around it.
        number: told behind the name; the collector sums all numbers of a name.
        patient: whether the block may take longer than a collective may wait.
        reads: whether the block waits for data, and for nothing else.
        collective: whether the block may wait for other ranks, and does little else; so does any
            named ``communication``.
    """
    global _current
    label = name if number is None else f"{name} {number}"
    if current_thread() is not main_thread():
        with _profiler_range(label):
            yield
        return
    outer, clock = _current, _clock
    full_name = f"{outer.name}, {label}" if outer.name else label
    _current = Span(
        full_name,
        patient or outer.patient,
        reads or outer.reads,
        collective or name == _COLLECTIVES or outer.collective,
    )
    if clock is not None:
        clock.enter(name)
    try:
        with _profiler_range(label):
            yield
    finally:
        if clock is not None:
            clock.leave()
    # Not in the `finally` block: an error is reported with the span that it was raised in.
    _current = replace(outer, since=time.monotonic())


@contextmanager
def collect_spans(
    device: Any = None, seconds: defaultdict[str, float] | None = None
) -> Iterator[dict[str, float]]:
    """Sums the wall-clock time of the main thread's spans that are opened within the block.

    Args:
        device: a ``torch.device``; on CUDA the device is synchronised wherever a span begins or
            ends, so that the times add up, and the step takes longer than without the collector.
        seconds: sums of an earlier block, to add to.

    Yields:
        Span name -> seconds of *self* time: time inside a nested span counts for the nested one
        alone. Complete when the block ends; time outside of all spans is not counted.
    """
    global _clock
    outer, clock = _clock, _SpanClock(device, defaultdict(float) if seconds is None else seconds)
    _clock = clock
    try:
        yield clock.seconds
    finally:
        _clock = outer


def _profiler_range(name: str) -> AbstractContextManager[Any]:
    """Returns a ``record_function`` range while ``torch.profiler`` runs, else a no-op."""
    torch = sys.modules.get("torch")
    # While torch itself is being imported its attributes are not there yet.
    autograd = getattr(torch, "autograd", None)
    if autograd is None or not autograd._profiler_enabled():
        return nullcontext()
    profiler_range: AbstractContextManager[Any] = autograd.profiler.record_function(name)
    return profiler_range

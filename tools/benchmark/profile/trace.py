"""Reads a Chrome trace of PyTorch's profiler: self time by operator, span, tower and module.

An operator of the backward pass belongs to the span and the module of the operator of the forward
pass that it is the gradient of: both carry one sequence number of autograd.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tools.benchmark.profile.operators import group_of, product_flops, product_type

MODULE = "module: "
"""Start of the labels that ``modules.py`` gives to modules."""
SPANS = ("input", "lookup", "zero_shot", "ranking", "backward", "optimizer", "communication")
"""Spans of a step, see ``mail_torchrec/utils/spans.py``; not imported, for a program without this
project reads traces too."""
_BACKWARD = "autograd::engine::evaluate_function"
_OPTIMIZER_STEP = "Optimizer.step"
_MICROSECOND = 1e-6


@dataclass(frozen=True)
class Place:
    """Where in a step an operator ran."""

    span: str = ""
    """Innermost span of the step; empty outside of all."""
    tower: str = ""
    """The span itself, or in the backward pass that of the forward operator; empty where none is
    known."""
    module: str = ""
    """Innermost marked module, or in the backward pass that of the forward operator."""


@dataclass(frozen=True)
class Operation:
    """One event of the training thread, without the events within it."""

    name: str
    group: str
    place: Place
    seconds: float
    """Self time."""
    flops: float = 0.0
    """Of a matrix product."""
    number_format: str = ""
    """Of a product's factors."""


class _Reader:
    """Walks through the nested events of one thread in the order of their start."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._stack: list[tuple[float, int]] = []
        self._places = {-1: Place()}
        self._self: list[float] = []
        self._events: list[Mapping[str, Any]] = []
        self._forward: dict[int, Place] = {}

    def read(self, events: Iterable[Mapping[str, Any]]) -> list[Operation]:
        for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
            self._open(event)
        return [self._operation(number) for number in range(len(self._events))]

    def _open(self, event: Mapping[str, Any]) -> None:
        start, duration, number = float(event["ts"]), float(event["dur"]), len(self._events)
        while self._stack and self._stack[-1][0] <= start:
            self._stack.pop()
        parent = self._stack[-1][1] if self._stack else -1
        if parent >= 0:
            duration = min(duration, self._stack[-1][0] - start)  # times are rounded
            self._self[parent] -= duration
        self._events.append(event)
        self._self.append(duration)
        self._places[number] = self._place(event, self._places[parent])
        self._stack.append((start + duration, number))

    def _place(self, event: Mapping[str, Any], outer: Place) -> Place:
        name, arguments = str(event["name"]), event.get("args", {})
        sequence_number = arguments.get("Sequence number", -1)
        if name.startswith(_BACKWARD):
            forward = self._forward.get(sequence_number, Place())
            return Place("backward", forward.tower, forward.module)
        if name in SPANS:
            tower = "" if name == "backward" else name
            return Place(name, tower, "")
        if name.startswith(_OPTIMIZER_STEP) and outer.span != "optimizer":
            return Place("optimizer", "optimizer", "")
        if name.startswith(MODULE):
            return Place(outer.span, outer.tower, name.removeprefix(MODULE))
        if outer.span != "backward" and sequence_number >= 0:
            self._forward[sequence_number] = outer  # the last one makes the gradient's node
        return outer

    def _operation(self, number: int) -> Operation:
        event, place = self._events[number], self._places[number]
        name, arguments = str(event["name"]), event.get("args", {})
        seconds = self._self[number] * _MICROSECOND
        flops = product_flops(name, arguments.get("Input Dims", ()))
        kind = product_type(arguments) if flops else ""
        return Operation(name, group_of(name), place, seconds, flops, kind)


def read_operations(trace: Mapping[str, Any]) -> list[Operation]:
    """Reads the operations of the thread that trains; their times add up to that of all of them.

    Args:
        trace: as ``torch.profiler`` exports it with shapes, times in microseconds.
    """
    events = [
        event
        for event in trace["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in ("cpu_op", "user_annotation")
    ]
    thread = training_thread(events)
    return _Reader().read(event for event in events if event["tid"] == thread)


def training_thread(events: Iterable[Mapping[str, Any]]) -> Any:
    """Returns the thread with the most events: readers and collectives have few.

    Args:
        events: of one trace.
    """
    return Counter(event["tid"] for event in events).most_common(1)[0][0]

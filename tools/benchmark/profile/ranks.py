"""Collectives of ranks: time in them, the exchange itself, and how long a rank waited for others.

All ranks call the same collectives in the same order, and traces of one machine have one clock. So
the n-th calls of all ranks belong together: who calls first waits for who calls last.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tools.benchmark.profile.trace import training_thread

_CALLS, _WORK = "c10d::", ("gloo:", "nccl:")
_LARGE = 2**18
"""Elements from which on an all-reduce counts as large: the towers' gradients."""
_MICROSECOND = 1e-6

Waits = dict[str, dict[str, float]]
"""Kind of collective -> numbers a step, see :func:`rank_waits`."""


def rank_waits(traces: Sequence[Mapping[str, Any]], steps: int) -> list[Waits]:
    """Sums the collectives of each rank by kind, all numbers a step.

    Args:
        traces: one of each rank.
        steps: that were profiled.

    Returns:
        One entry a rank: kind -> ``calls``; ``seconds`` from a collective's start to its end on the
        thread that carries it out; ``exchange``, the least of these of all ranks, which is that of
        the rank that waits for nobody; ``early``, seconds for which this rank had called it and
        another one had not.
    """
    called = [list(_calls(trace)) for trace in traces]
    done = [_work(trace) for trace in traces]
    found: list[Waits] = [{} for _ in traces]
    for kind in sorted({kind for of_rank in done for kind in of_rank}):
        pairs = list(zip(*(of_rank[kind] for of_rank in done), strict=False))
        exchange = sum((min(times) for times in pairs), 0.0)
        for waits, of_rank in zip(found, done, strict=True):
            times = of_rank[kind]
            waits[kind] = {"calls": len(times), "seconds": sum(times), "exchange": exchange}
    for starts in zip(*called, strict=False):
        last = max(starts)
        for waits, start in zip(found, starts, strict=True):
            everything = waits.setdefault("all", {"early": 0.0})
            everything["early"] += last - start
    return [
        {kind: {name: value / steps for name, value in n.items()} for kind, n in waits.items()}
        for waits in found
    ]


def _calls(trace: Mapping[str, Any]) -> Iterable[float]:
    """Seconds at which the training thread calls each collective, in their order."""
    events = [event for event in trace["traceEvents"] if event.get("cat") == "cpu_op"]
    thread = training_thread(events)
    calls = [
        float(event["ts"]) * _MICROSECOND
        for event in events
        if event["tid"] == thread and str(event["name"]).startswith(_CALLS)
    ]
    return sorted(calls)


def _work(trace: Mapping[str, Any]) -> defaultdict[str, list[float]]:
    """Seconds of each collective by kind, in the order of their start."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for event in sorted(trace["traceEvents"], key=lambda event: event.get("ts", 0.0)):
        if event.get("ph") == "X" and str(event["name"]).startswith(_WORK):
            found[_kind(event)].append(float(event["dur"]) * _MICROSECOND)
    return found


def _kind(event: Mapping[str, Any]) -> str:
    name = str(event["name"]).partition(":")[2]
    shapes = event.get("args", {}).get("Input Dims", [])
    if name != "all_reduce":
        return name
    large = sum(math.prod(shape) for shape in shapes) >= _LARGE
    return f"{name}, 1 MiB or more" if large else f"{name}, less"

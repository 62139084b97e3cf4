"""Time of table kernels and of collectives in profiled steps."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd import DeviceType

_LOOKUP = re.compile(r"split_embedding.*(forward|backward)")
# Gloo's and NCCL's own names; those of their callers include what they prepare.
_COLLECTIVE = re.compile(r"^(gloo:|nccl)|^c10d::(alltoall|_reduce_scatter|_allgather)")


def event_times(events: Iterable[Any], device: torch.device) -> tuple[float, float]:
    """Sums the milliseconds in which a table's kernel ran, and in which a collective did.

    Args:
        events: of ``torch.profiler``.
        device: whose kernels count: those of the GPU, or the operators of the host.
    """
    kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    own = [event for event in events if event.device_type == kind]
    return _covered(own, _LOOKUP), _covered(own, _COLLECTIVE)


def _covered(events: Iterable[Any], name: re.Pattern[str]) -> float:
    """Returns the milliseconds that events of a name cover together, nested or side by side."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if name.search(event.name)
    )
    covered, until = 0.0, float("-inf")
    for start, end in spans:
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered / 1e3

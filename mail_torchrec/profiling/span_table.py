"""Table by named span, made of the Chrome traces of all ranks."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mail_torchrec.utils.spans import STEP_SPANS

STEP = "step"
"""Row of the time within steps that lies in none of their spans."""
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
_MICROSECOND = 1e-6


@dataclass
class SpanTime:
    """Time of one named span, summed over steps or a mean of them."""

    calls: float = 0.0
    self_seconds: float = 0.0
    """On the host, without the spans within."""
    total_seconds: float = 0.0
    """On the host, with the spans within."""
    device_seconds: float = 0.0
    """Of a GPU's kernels and copies that were started in this span and in none within."""


def span_times(trace: Mapping[str, Any]) -> dict[str, SpanTime]:
    """Sums the spans of one rank's trace by name.

    Args:
        trace: as ``torch.profiler`` exports it: ``traceEvents`` with times in microseconds.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    spans = [
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]), name)
        for event in events
        if event.get("cat") == "user_annotation" and (name := _span_name(event["name"]))
    ]
    times: dict[str, SpanTime] = {name: SpanTime() for name in (*STEP_SPANS, STEP)}
    borders = list(_innermost(spans, times))
    starts = [start for start, _ in borders]
    launched = {
        event["args"].get("correlation"): float(event["ts"])
        for event in events
        if event.get("cat") in _LAUNCHES
    }
    for event in events:
        if event.get("cat") in _DEVICE_WORK:
            at = launched.get(event["args"].get("correlation"))
            place = -1 if at is None else bisect_right(starts, at) - 1
            if place >= 0 and (name := borders[place][1]):
                times[name].device_seconds += float(event["dur"]) * _MICROSECOND
    return {name: time for name, time in times.items() if time.calls}


def mean_times(ranks: Sequence[Mapping[str, SpanTime]]) -> dict[str, SpanTime]:
    """Returns the mean over ranks and steps, by name, in the order of a step."""
    num_steps = sum(times[STEP].calls for times in ranks)
    found = [name for name in (*STEP_SPANS, STEP) if any(name in times for times in ranks)]
    means = {}
    for name in found:
        parts = [asdict(times.get(name, SpanTime())) for times in ranks]
        means[name] = SpanTime(
            **{key: sum(part[key] for part in parts) / num_steps for key in parts[0]}
        )
    return means


def table_json(means: Mapping[str, SpanTime], first: int, last: int, num_ranks: int) -> str:
    """Returns the table as JSON: seconds a step, and shares of a step.

    Args:
        means: by span.
        first: first step that was profiled.
        last: last one.
        num_ranks: ranks that the means are over.
    """
    seconds = means[STEP].total_seconds
    shares = {name: time.self_seconds / seconds for name, time in means.items()}
    rows = [{"span": name, "share": shares[name], **asdict(time)} for name, time in means.items()]
    window = {"first_step": first, "last_step": last, "ranks": num_ranks}
    return json.dumps(window | {"seconds_a_step": seconds, "spans": rows}, indent=2) + "\n"


def table_markdown(means: Mapping[str, SpanTime], first: int, last: int, num_ranks: int) -> str:
    """Returns the table as Markdown; arguments as for :func:`table_json`."""
    seconds = means[STEP].total_seconds
    on_device = any(time.device_seconds for time in means.values())
    head = ["span", "calls", "self ms", "total ms", "share of the step"]
    lines = [_line([*head, *(["GPU ms"] if on_device else [])])]
    lines.append(_line(["---"] + ["---:"] * (len(head) - 1 + on_device)))
    for name, time in means.items():
        cells = [
            name if name != STEP else "step (the rest of it)",
            f"{time.calls:.1f}",
            f"{time.self_seconds * 1e3:.2f}",
            f"{time.total_seconds * 1e3:.2f}",
            f"{time.self_seconds / seconds:.1%}",
        ]
        lines.append(_line([*cells, *([f"{time.device_seconds * 1e3:.2f}"] if on_device else [])]))
    ranks = f"{num_ranks} ranks" if num_ranks > 1 else "1 rank"
    title = f"Steps {first} to {last}, means of a step over {ranks}; a step took "
    return f"{title}{seconds * 1e3:.2f} ms with the profiler.\n\n" + "\n".join(lines) + "\n"


def _span_name(label: str) -> str:
    """Returns the name of a span of a step, without the step's number; else an empty text."""
    name = label.partition(" ")[0]
    return name if label in STEP_SPANS or name == STEP else ""


def _innermost(
    spans: Iterable[tuple[float, float, str]], times: dict[str, SpanTime]
) -> Iterable[tuple[float, str]]:
    """Adds up nested spans, and yields from when on which one is the innermost ("": none)."""
    stack: list[tuple[float, str]] = []
    since = 0.0

    def pass_to(moment: float) -> None:
        nonlocal since
        if stack:
            times[stack[-1][1]].self_seconds += (moment - since) * _MICROSECOND
        since = moment

    for start, end, name in sorted(spans, key=lambda span: (span[0], -span[1])):
        while stack and stack[-1][0] <= start:
            until, _ = stack[-1]
            pass_to(until)
            stack.pop()
            yield until, stack[-1][1] if stack else ""
        if not stack and name != STEP:  # between steps, as a report's exchange
            continue
        pass_to(start)
        if stack:
            end = min(end, stack[-1][0])  # times are rounded
        times[name].calls += 1
        if all(name != outer for _, outer in stack):
            times[name].total_seconds += (end - start) * _MICROSECOND
        stack.append((end, name))
        yield start, name
    while stack:
        until, _ = stack[-1]
        pass_to(until)
        stack.pop()
        yield until, stack[-1][1] if stack else ""


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"

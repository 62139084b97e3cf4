"""The table of a made-up trace: nested spans, several ranks, work of a GPU."""

import json
from typing import Any

import pytest

from mail_torchrec.profiling.span_table import (
    SpanTime,
    mean_times,
    span_times,
    table_json,
    table_markdown,
)


def event(cat: str, name: str, ts: float, dur: float, correlation: int = 0) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "ts": ts,
        "dur": dur,
        "args": {"correlation": correlation},
    }


TRACE = {
    "traceEvents": [
        event("user_annotation", "step 7", 1000, 100),
        event("user_annotation", "lookup", 1010, 30),
        event("user_annotation", "communication", 1020, 10),
        event("user_annotation", "backward", 1040, 50),  # begins where the lookup ends
        event("user_annotation", "step 8", 1200, 60),
        event("user_annotation", "lookup", 1200, 20),  # begins with its step
        event("user_annotation", "## forward ##", 1000, 90),  # TorchRec's own
        event("cpu_op", "lookup", 1000, 90),
        event("cuda_runtime", "cudaLaunchKernel", 1025, 1, 1),  # within communication
        event("cuda_runtime", "cudaLaunchKernel", 1045, 1, 2),  # within backward
        event("cuda_runtime", "cudaLaunchKernel", 1150, 1, 3),  # between steps
        event("kernel", "all_to_all", 1300, 40, 1),
        event("kernel", "gemm", 1340, 70, 2),
        event("kernel", "other", 1500, 70, 3),
        event("kernel", "unknown", 1500, 70, 9),
        {"ph": "M", "name": "process_name"},
    ]
}


def test_spans_are_summed_by_name_with_and_without_what_is_within() -> None:
    times = span_times(TRACE)
    assert list(times) == ["lookup", "backward", "communication", "step"]
    micro = {
        name: [round(value * 1e6) for value in (time.self_seconds, time.total_seconds)]
        for name, time in times.items()
    }
    assert micro == {
        "lookup": [40, 50],
        "communication": [10, 10],
        "backward": [50, 50],
        "step": [60, 160],
    }
    assert sum(own for own, _ in micro.values()) == 160
    assert times["lookup"].calls == times["step"].calls == 2


def test_a_kernel_belongs_to_the_span_that_started_it() -> None:
    device = {name: time.device_seconds * 1e6 for name, time in span_times(TRACE).items()}
    assert device == pytest.approx({"lookup": 0, "backward": 70, "communication": 40, "step": 0})


def test_the_table_is_a_mean_over_ranks_and_steps_and_its_shares_add_up() -> None:
    other = {"step": SpanTime(2, 4e-5, 2e-4), "lookup": SpanTime(2, 1.6e-4, 1.6e-4)}
    means = mean_times([span_times(TRACE), other])
    assert means["step"].total_seconds == pytest.approx(9e-5)
    assert means["backward"].calls == 0.25
    table = json.loads(table_json(means, 7, 8, 2))
    assert table["ranks"] == 2 and (table["first_step"], table["last_step"]) == (7, 8)
    assert sum(row["share"] for row in table["spans"]) == pytest.approx(1)
    text = table_markdown(means, 7, 8, 2)
    assert "| lookup | 1.0 | 0.05 | 0.05 | 55.6% | 0.00 |" in text
    assert "GPU ms" not in table_markdown({"step": SpanTime(1, 1.0, 1.0)}, 7, 8, 1)

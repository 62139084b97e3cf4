"""A trace of some steps: how long the GPU was idle, how many kernels ran, and the longest.

``trace-rank-0.json.gz`` is kept; Perfetto opens it.
"""

import collections
import gzip
import json
from collections.abc import Iterable
from typing import Any

from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.profiling.profiler import start_profiler, stop_profiler
from mail_torchrec.train.steps import run_steps
from mail_torchrec.utils.logging import silence_third_parties
from tools.benchmark.trainers import ProjectTrainer, workload_encoders
from tools.gpu.checks.speed import reader_processes, variants
from tools.gpu.rows import large_workload
from tools.gpu.stage import StageRun

_WARM_UP, _STEPS = 40, 8
_VARIANT = "grouped bf16"
_LONGEST = 12
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def check(run: StageRun) -> None:
    """Profiles the grouped variant in bfloat16."""
    silence_third_parties()
    with process_group(run.device) as device:
        workload = large_workload(run)
        variant = variants(reader_processes(run))[_VARIANT]
        encoders = workload_encoders(workload)
        trainer = ProjectTrainer(workload, variant, device, encoders)
        for _ in range(1 if run.small else _WARM_UP):
            trainer.step()
        profiler, steps = (
            start_profiler(device),
            run_steps(trainer.assembled.pipeline, trainer.input),
        )
        for _, _ in zip(range(_STEPS), steps, strict=False):
            pass
        spans = stop_profiler(profiler, device, run.out)
    step = spans["step"]
    run.record(
        "spans, ms a step on the host and of the GPU",
        {
            name: [time.self_seconds / step.calls * 1e3, time.device_seconds / step.calls * 1e3]
            for name, time in spans.items()
        },
    )
    with gzip.open(run.out / "trace-rank-0.json.gz") as file:
        work = device_work(json.load(file)["traceEvents"])
    ms = step.total_seconds / step.calls * 1e3
    if not work["kernels"]:
        missing = "a CPU has no idle share" if run.device == "cpu" else "the trace has no kernels"
        ok = None if run.device == "cpu" else False
        run.record("device", work, ok=ok, text=f"{ms:.1f} ms a step; {missing}")
        return
    text = (
        f"{_VARIANT}: {ms:.1f} ms a step under the profiler, GPU idle {work['idle_share']:.0%}, "
        f"{work['kernels'] / step.calls:.0f} kernels; longest {work['longest'][0][0][:40]} "
        f"{work['longest'][0][1]:.0%}"
    )
    run.record("device", work, text=text)


def device_work(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Sums a trace's work of the GPU.

    Args:
        events: of a Chrome trace, with times in microseconds.

    Returns:
        ``kernels``, their number; ``idle_share`` of the time from the first to the last one's end
        in which nothing ran on any stream; ``longest``, names and shares of the busy time.
    """
    work = sorted(
        (float(event["ts"]), float(event["dur"]), str(event["name"]))
        for event in events
        if event.get("ph") == "X" and event.get("cat") in _ON_DEVICE
    )
    if not work:
        return {"kernels": 0, "idle_share": None, "longest": []}
    seconds: collections.Counter[str] = collections.Counter()
    busy, end = 0.0, work[0][0]
    for start, duration, name in work:
        seconds[name] += duration  # type: ignore[assignment]
        busy += max(start + duration - max(start, end), 0.0)
        end = max(end, start + duration)
    total = sum(seconds.values())
    longest = [[name, value / total] for name, value in seconds.most_common(_LONGEST)]
    return {
        "kernels": len(work),
        "idle_share": 1 - busy / (end - work[0][0]),
        "longest": longest,
    }

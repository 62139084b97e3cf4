"""Measures the parts of a training step by its named spans (``mail_torchrec/utils/spans.py``).

The backward pass is one part: the update of the sharded tables is fused into it by FBGEMM, and so
is the averaging of gradients over ranks. On a GPU each span waits for the device, so the parts add
up, but the step takes longer than without the measurement.
"""

import time

import torch

from mail_torchrec.utils.spans import STEP_SPANS, collect_spans
from tools.benchmark.throughput import synchronise
from tools.benchmark.trainers import BenchmarkTrainer

PARTS = (*STEP_SPANS, "other")
"""Spans of a step, and the rest of it."""


def measure_breakdown(
    trainer: BenchmarkTrainer, steps: int, device: torch.device
) -> dict[str, float]:
    """Measures the seconds a step of each part; the trainer should have trained a step before."""
    trainer.step()
    synchronise()
    start = time.perf_counter()
    with collect_spans(device) as seconds:
        for _ in range(steps):
            trainer.step()
        synchronise()
    total = time.perf_counter() - start
    parts = {part: seconds.get(part, 0.0) for part in STEP_SPANS}
    parts["other"] = total - sum(parts.values())
    return {part: value / steps for part, value in parts.items()}

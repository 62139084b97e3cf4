"""Records the profile of some steps of a trainer, as a Chrome trace."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.profiler import ProfilerActivity, profile

from tools.benchmark.profile.modules import marked_modules
from tools.benchmark.trainers import BenchmarkTrainer, ProjectTrainer, ReferenceTrainer


@dataclass(frozen=True)
class ProfileRequest:
    """Asks a trainer to profile some steps."""

    steps: int
    trace: Path
    """File for the Chrome trace."""


@dataclass(frozen=True)
class ProfiledSteps:
    """Times of the same number of steps without and with the profiler."""

    steps: int
    seconds: float
    """Without the profiler."""
    profiled_seconds: float
    cpu_seconds: float
    """Processor time of the training thread within ``seconds``: where it is less, the thread
    waited for its other threads, for other ranks, or for a core."""


def record_profile(trainer: BenchmarkTrainer, request: ProfileRequest) -> ProfiledSteps:
    """Trains some steps without the profiler, and as many with it.

    Args:
        trainer: that has trained some steps.
        request: their number, and where the trace goes.
    """
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in range(request.steps):
        trainer.step()
    seconds, cpu_seconds = time.perf_counter() - wall, time.thread_time() - cpu
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it prints lines of its own
    with marked_modules(_model(trainer)):
        profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        with profiler:
            start = time.perf_counter()
            for _ in range(request.steps):
                trainer.step()
            profiled = time.perf_counter() - start
    profiler.export_chrome_trace(str(request.trace))
    return ProfiledSteps(request.steps, seconds, profiled, cpu_seconds)


def _model(trainer: BenchmarkTrainer) -> nn.Module:
    assert isinstance(trainer, ProjectTrainer | ReferenceTrainer)
    return trainer.assembled.model if isinstance(trainer, ProjectTrainer) else trainer.model

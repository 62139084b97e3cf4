"""Steps of one plan on random rows: time of a step and of its parts, and memory."""

import gc
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from mail_torchrec.config import Config, load_config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.distributed.collectives import gather_objects
from mail_torchrec.planning.measured.event_times import event_times
from mail_torchrec.planning.measured.job import PlanToMeasure
from mail_torchrec.profiling.profiler import start_profiler
from mail_torchrec.train.assembly import AssembledModel, assemble
from mail_torchrec.train.cost.memory_usage import memory_usage
from mail_torchrec.train.cost.random_batches import RandomIds, random_batch
from mail_torchrec.utils.host_memory import give_back_freed_memory

_WARM_UP_STEPS = 3
_PROFILED_STEPS = 4
_BATCHES = 4
# On a GPU the host runs ahead: steps are timed in so many stretches.
_CUDA_STRETCHES = 5


def measure_plan(
    planned: PlanToMeasure, folder: Path, steps: int, device: torch.device
) -> dict[str, Any]:
    """Trains some steps by a plan; every rank calls it, and gets what all measured.

    Args:
        planned: the plan.
        folder: of the job.
        steps: to be timed.
        device: of this rank.
    """
    config = load_config(folder / planned.config, [])
    encoders = SizedEncoders({}, {}, {}, planned.num_rows, planned.vector_dims)
    free_memory(device)
    before = reset_peak(device)
    assembled = assemble(config, encoders, device, folder / planned.plan)
    assembled.optimizer.plan(10**9)
    sizes = planned.num_rows, planned.vector_dims
    batches = random_batches(config, assembled.feature_tables, *sizes)
    run_steps(assembled, batches, _WARM_UP_STEPS)
    own: dict[str, Any] = {"step_ms": timed_steps(assembled, batches, steps, device)}
    own["peak"] = peak_bytes(device) - before
    own["lookup_ms"], own["communication_ms"] = _profiled(assembled, batches, device)
    ranks = gather_objects(own)
    usage = memory_usage(assembled.model, assembled.optimizer, device)
    return {
        "name": planned.name,
        "step_ms": [mean(of_step) for of_step in zip(*(r["step_ms"] for r in ranks), strict=True)],
        "lookup_ms": max(rank["lookup_ms"] for rank in ranks),
        # The rank that comes last to a collective waits for none.
        "communication_ms": min(rank["communication_ms"] for rank in ranks),
        "peak": [rank["peak"] for rank in ranks],
        "table_weights": usage["table_weights"],
        "optimizer_state": usage["optimizer_state"],
    }


@dataclass(frozen=True)
class SizedEncoders(Encoders):
    """Encoders of tables whose ids nobody has read: they know sizes alone."""

    rows: dict[str, int] = field(default_factory=dict)
    """Rows by table name."""
    dims: dict[str, int] = field(default_factory=dict)
    """Number of elements by vector column."""

    @property
    def num_rows(self) -> dict[str, int]:
        """Number of rows of every table."""
        return self.rows

    @property
    def vector_dims(self) -> dict[str, int]:
        """Number of elements of every vector column."""
        return self.dims


def random_batches(
    config: Config,
    feature_tables: FeatureTables,
    num_rows: dict[str, int],
    vector_dims: dict[str, int],
) -> Iterator[Batch]:
    """Returns some random batches over and over.

    Args:
        config: of the model.
        feature_tables: tables by feature key.
        num_rows: table -> rows.
        vector_dims: number of elements of each vector column.
    """
    ids = RandomIds(num_rows, config.sharding.pooling_factors)
    shapes = config, feature_tables, config.train.batch_size, ids, vector_dims
    return itertools.cycle([random_batch(*shapes) for _ in range(_BATCHES)])


def run_steps(assembled: AssembledModel, batches: Iterator[Batch], steps: int) -> None:
    """Runs some steps."""
    for _ in range(steps):
        assembled.pipeline.progress(batches)


def timed_steps(
    assembled: AssembledModel, batches: Iterator[Batch], steps: int, device: torch.device
) -> list[float]:
    """Returns the milliseconds of each step, on a GPU those of a mean step of each stretch."""
    stretch = max(1, steps // _CUDA_STRETCHES) if device.type == "cuda" else 1
    found = []
    for _ in range(steps // stretch):
        start = time.perf_counter()
        run_steps(assembled, batches, stretch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append((time.perf_counter() - start) * 1e3 / stretch)
    return found


def _profiled(
    assembled: AssembledModel, batches: Iterator[Batch], device: torch.device
) -> tuple[float, float]:
    """Returns the milliseconds a step of the tables' kernels and of collectives: a median."""
    found = []
    for _ in range(_PROFILED_STEPS):
        profiler = start_profiler(device)
        run_steps(assembled, batches, 1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        profiler.stop()
        found.append(event_times(profiler.events() or [], device))
    lookups, collectives = zip(*found, strict=True)
    return median(lookups), median(collectives)


def free_memory(device: torch.device) -> None:
    """Frees what an earlier plan left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    give_back_freed_memory()


def reset_peak(device: torch.device) -> int:
    """Forgets the peak of memory; returns the bytes that are taken now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident memory
    return _status_bytes("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """Returns the most bytes that were taken since the peak was reset."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(key)

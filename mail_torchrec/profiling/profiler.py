"""Profiler of a window of steps: a Chrome trace of each rank."""

import gzip
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mail_torchrec.distributed.collectives import rank
from mail_torchrec.profiling.span_table import SpanTime, span_times
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import write_file

logger = get_logger(__name__)

# Kineto prints lines of its own at every start and stop.
_SILENT = "6"


def start_profiler(device: torch.device) -> profile:
    """Starts a profiler of this rank's host and, with CUDA, of its device."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    os.environ.setdefault("KINETO_LOG_LEVEL", _SILENT)
    profiler = profile(activities=activities)
    profiler.start()
    return profiler


def stop_profiler(profiler: profile, device: torch.device, folder: Path) -> dict[str, SpanTime]:
    """Stops a profiler, and writes this rank's trace; a disk that takes no trace ends no run.

    Args:
        profiler: that runs.
        device: of this rank.
        folder: for ``trace-rank-N.json.gz``, which Perfetto and chrome://tracing open.

    Returns:
        The times of the rank's spans, by name.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    profiler.stop()
    path = folder / f"trace-rank-{rank()}.json.gz"
    try:
        text = _chrome_trace(profiler)
        folder.mkdir(exist_ok=True)
        write_file(path, gzip.compress(text, compresslevel=5, mtime=0))
    except OSError as error:
        logger.warning("the trace of the profiled steps could not be written: %s", error)
        return {}
    trace: dict[str, Any] = json.loads(text)
    times = span_times(trace)
    if device.type == "cuda" and not any(time.device_seconds for time in times.values()):
        logger.warning("the profiler saw no work of the GPU: CUPTI may not be allowed to")
    return times


def _chrome_trace(profiler: profile) -> bytes:
    """Returns the trace as JSON; the profiler itself writes to a path alone."""
    folder = Path(tempfile.mkdtemp(prefix="mail-torchrec-profile-"))
    try:
        profiler.export_chrome_trace(str(folder / "trace.json"))
        return (folder / "trace.json").read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""One measurement in processes of its own: several ranks, or a setting whose peak memory is to be told from that of others."""

import json
import os
import re
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mail_torchrec.quiet import quiet_third_parties
from tools.benchmark.interleaved import synchronise
from tools.benchmark.setting import Setting, Variant
from tools.benchmark.sides import encoders_of, side_of

_KIBI = 1024


@dataclass(frozen=True)
class Job:
    """A side to be trained for a few steps."""

    setting: Setting
    variant: Variant | None
    """None is the reference."""
    ranks: int = 1
    threads: int = 1
    """Of each rank."""
    steps: int = 4
    device: str = "cpu"


@dataclass(frozen=True)
class Measured:
    """What came out."""

    rows_per_second: float
    """Of all ranks."""
    seconds_per_step: float
    """The median."""
    peak_bytes: int
    """Of a rank: resident memory at its highest, or what was allocated on the GPU."""


def measured(job: Job) -> Measured:
    """Runs it; raises what its processes raise."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (job, folder), nprocs=job.ranks, start_method="spawn")
        return Measured(**json.loads((Path(folder) / "result.json").read_text()))


def _rank(rank: int, job: Job, folder: str) -> None:
    quiet_third_parties()
    torch.set_num_threads(job.threads)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(job.ranks)}
    device = torch.device(job.device, rank) if job.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=job.ranks)
    side = side_of(job.setting, job.variant, device, encoders_of(job.setting.config()))
    for _ in range(2):
        side.step()
    seconds, rows = [], 0
    for _ in range(job.steps):
        synchronise()
        start = time.perf_counter()
        rows = side.step()
        synchronise()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        step = statistics.median(seconds)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_on_host()
        result = {"rows_per_second": job.ranks * rows / step, "seconds_per_step": step, "peak_bytes": int(peak)}
        (Path(folder) / "result.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def _peak_on_host() -> int:
    """Resident bytes at their highest. What ``getrusage`` says holds the peak of the parent as well, from before it became this program."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * _KIBI

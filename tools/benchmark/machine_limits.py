"""Describes the machine, and measures its limits: products, copies, FBGEMM's lookups."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from tools.benchmark.throughput import synchronise

_GEMMS = {
    "cpu": ((1024, 1024, 3200), (1024, 1536, 1024)),
    "cuda": ((8192, 8192, 8192), (16384, 1536, 3200)),
}
"""Sizes of the matrix products; the best of them is the limit."""
_COPY = {"cpu": 2**28, "cuda": 2**31}
"""Bytes of a copy, far above all caches."""
_LOOKUPS = {"cpu": (65_536, 1_000_000), "cuda": (4_000_000, 10_000_000)}
"""Ids of a lookup (about the rows of a batch times T) and rows of its table."""
_REPEATS, _MAX_SECONDS = 5, 2.0
"""Repeats of each measurement; fewer where that many seconds are spent, as with bfloat16 on a
processor without units for it."""
_FLOAT = 4


def machine_limits(device: torch.device, *, dim: int = 32, small: bool = False) -> dict[str, float]:
    """Measures all limits: the best of the products, medians of copies and lookups.

    Args:
        device: to measure.
        dim: dimension of the lookups' table.
        small: whether sizes are tiny, to check that everything runs.

    Returns:
        ``gemm_float32`` and ``gemm_bfloat16`` in FLOP/s; ``copy`` in bytes/s, read and written;
        ``lookup_forward`` and ``lookup_backward`` in bytes/s, see :func:`lookup_bytes`.
    """
    gemms = ((64, 64, 64),) if small else _GEMMS[device.type]
    found = {
        f"gemm_{name}": max(_gemm(size, dtype, device) for size in gemms)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    num_ids, table_rows = (1000, 1000) if small else _LOOKUPS[device.type]
    return (
        found
        | {"copy": _copy(device, 2**20 if small else _COPY[device.type])}
        | _lookups(device, num_ids, table_rows, dim)
    )


def _gemm(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    rows, inner, columns = size
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(inner, columns, device=device, dtype=dtype)
    return 2 * rows * inner * columns / min(_seconds(lambda: left @ right))


def _copy(device: torch.device, num_bytes: int) -> float:
    source = torch.ones(num_bytes // _FLOAT, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / statistics.median(_seconds(lambda: target.copy_(source)))


def lookup_bytes(num_ids: int, dim: int) -> dict[str, float]:
    """Computes the bytes that an unpooled lookup has to move at least.

    The optimizer is row-wise Adagrad, and ids do not repeat. Forward, each id and row is read and
    each vector written. Backward, each gradient is read, and each row and its state are read and
    written.
    """
    vectors, ids = _FLOAT * num_ids * dim, 8 * num_ids
    return {
        "lookup_forward": 2 * vectors + ids,
        "lookup_backward": 3 * vectors + ids + 2 * _FLOAT * num_ids,
    }


def _lookups(device: torch.device, num_ids: int, table_rows: int, dim: int) -> dict[str, float]:
    on_cuda = device.type == "cuda"
    location = EmbeddingLocation.DEVICE if on_cuda else EmbeddingLocation.HOST
    compute = ComputeDevice.CUDA if on_cuda else ComputeDevice.CPU
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(table_rows, dim, location, compute)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        pooling_mode=PoolingMode.NONE,
        device=device,
    )
    ids = torch.randint(0, table_rows, (num_ids,), device=device)
    offsets = torch.arange(num_ids + 1, device=device)
    bytes_moved = lookup_bytes(num_ids, dim)
    forward = statistics.median(_seconds(lambda: tables(ids, offsets)))
    gradient = torch.randn(num_ids, dim, device=device)
    outputs = [tables(ids, offsets) for _ in range(_REPEATS + 1)]
    backward = statistics.median(_seconds(lambda: outputs.pop().backward(gradient)))
    return {
        "lookup_forward": bytes_moved["lookup_forward"] / forward,
        "lookup_backward": bytes_moved["lookup_backward"] / backward,
    }


def _seconds(action: Callable[[], object]) -> list[float]:
    """Measures each repeat, after one that does not count."""
    action()
    found: list[float] = []
    while len(found) < _REPEATS and sum(found) < _MAX_SECONDS:
        synchronise()
        start = time.perf_counter()
        action()
        synchronise()
        found.append(time.perf_counter() - start)
    return found


def describe_machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Describes device, processor, cores and versions."""
    return {
        "device": device.type,
        "processor": _processor(device),
        "threads": threads,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{next(names, platform.processor())} ({capability})"

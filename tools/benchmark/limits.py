"""What the machine can do at most, measured in the same run: matrix products, copies, and FBGEMM's lookups beside these copies."""

import statistics
import time
from collections.abc import Callable

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from tools.benchmark.interleaved import synchronise

_GEMMS = {
    "cpu": ((1024, 1024, 3200), (1024, 1536, 1024)),
    "cuda": ((8192, 8192, 8192), (16384, 1536, 3200)),
}
"""Sizes of the products: the best of them is the limit."""
_COPY = {"cpu": 2**28, "cuda": 2**31}
"""Bytes, far above all caches."""
_LOOKUPS = {"cpu": (65_536, 1_000_000), "cuda": (4_000_000, 10_000_000)}
"""Ids of a lookup (rows of a batch times T, more or less) and rows of its table."""
_REPEATS, _ENOUGH = 5, 2.0
"""Of each; fewer where that many seconds are spent, as with bfloat16 on a processor that has
none."""
_FLOAT = 4


def machine_limits(device: torch.device, *, dim: int = 32, small: bool = False) -> dict[str, float]:
    """Measures all of them: the best of products, medians of copies and feature_tables.

    Args:
        device: whose.
        dim: width of the lookups' table.
        small: sizes whose figures mean nothing, to see that all works.

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
    left, right = (
        torch.randn(rows, inner, device=device, dtype=dtype),
        torch.randn(inner, columns, device=device, dtype=dtype),
    )
    return 2 * rows * inner * columns / min(_seconds(lambda: left @ right))


def _copy(device: torch.device, num_bytes: int) -> float:
    source = torch.ones(num_bytes // _FLOAT, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / statistics.median(_seconds(lambda: target.copy_(source)))


def lookup_bytes(num_ids: int, dim: int) -> dict[str, float]:
    """Bytes that an unpooled lookup has to move at least, with row-wise Adagrad and ids that do not repeat.

    Forward: each id and row is read, each vector written. Backward: each gradient is read, each row
        read and written, as is its state.
    """
    vectors, ids = _FLOAT * num_ids * dim, 8 * num_ids
    return {
        "lookup_forward": 2 * vectors + ids,
        "lookup_backward": 3 * vectors + ids + 2 * _FLOAT * num_ids,
    }


def _lookups(device: torch.device, num_ids: int, table_rows: int, dim: int) -> dict[str, float]:
    on = device.type == "cuda"
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [
            (
                table_rows,
                dim,
                EmbeddingLocation.DEVICE if on else EmbeddingLocation.HOST,
                ComputeDevice.CUDA if on else ComputeDevice.CPU,
            )
        ],
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
    """Of each repeat, after one that does not count."""
    action()
    found: list[float] = []
    while len(found) < _REPEATS and sum(found) < _ENOUGH:
        synchronise()
        start = time.perf_counter()
        action()
        synchronise()
        found.append(time.perf_counter() - start)
    return found

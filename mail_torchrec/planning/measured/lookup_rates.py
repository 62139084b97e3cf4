"""Rates of FBGEMM's kernels, measured by lookups of many shapes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from mail_torchrec.embeddings.rates.machine_rates import LookupRate, LookupRates, lookup_terms
from mail_torchrec.planning.measured.fitting import fit, timed

_COLUMNS = (8, 64)
# Rows of the table: nearly every id is another row, or few are.
_MANY, _FEW = 400_000, 4_000
# Rows of the table, ids, and ids a bag.
_LOOKUPS: tuple[tuple[int, int, int], ...] = (
    (_MANY, 512, 1),
    (_MANY, 4_096, 1),
    (_MANY, 8_192, 16),
    (_MANY, 32_768, 1),
    (_MANY, 65_536, 16),
    (_MANY, 131_072, 16),
    (_FEW, 4_096, 1),
    (_FEW, 65_536, 16),
)
_LARGE_IDS, _REPEATS, _LARGE_REPEATS = 65_536, 5, 3
_OPTIMIZERS = {
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
}


def measure_lookups(device: torch.device) -> dict[str, LookupRates]:
    """Measures lookups with their backward pass, by table optimizer; every rank calls it.

    Args:
        device: of this rank.
    """
    return {
        name: LookupRates(
            pooled=_measure(optimizer, PoolingMode.SUM, device),
            unpooled=_measure(optimizer, PoolingMode.NONE, device),
        )
        for name, optimizer in _OPTIMIZERS.items()
    }


def _measure(optimizer: EmbOptimType, pooling: PoolingMode, device: torch.device) -> LookupRate:
    """Fits the time of FBGEMM's kernels, forward and backward, to lookups of many shapes."""
    points: list[tuple[int, int, int, int, float]] = []
    for columns in _COLUMNS:
        tables = {
            rows: _build_table(rows, columns, optimizer, pooling, device)
            for rows in dict.fromkeys(shape[0] for shape in _LOOKUPS)
        }
        for rows, ids, length in _LOOKUPS:
            repeats = _REPEATS if ids < _LARGE_IDS else _LARGE_REPEATS
            ms = timed(_lookup(tables[rows], rows, ids, length, device), device, repeats)
            points.append((ids, columns, ids // length, rows, ms))
    terms = [{"fixed_ms": 1.0} | lookup_terms(*shape) for *shape, _ in points]
    terms_PC = np.array([list(of_point.values()) for of_point in terms])
    rates = fit(terms_PC, np.array([point[-1] for point in points]))
    fitted: dict[str, Any] = dict(zip(terms[0], rates, strict=True))
    return LookupRate(**fitted, measured=points)


def _build_table(
    rows: int, columns: int, optimizer: EmbOptimType, pooling: PoolingMode, device: torch.device
) -> SplitTableBatchedEmbeddingBagsCodegen:
    on_cuda = device.type == "cuda"
    location = EmbeddingLocation.DEVICE if on_cuda else EmbeddingLocation.HOST
    compute = ComputeDevice.CUDA if on_cuda else ComputeDevice.CPU
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, columns, location, compute)],
        optimizer=optimizer,
        pooling_mode=pooling,
        learning_rate=0.01,
        device=device,
    )
    table.init_embedding_weights_uniform(-0.1, 0.1)  # what memory held before is slow: denormals
    return table


def _lookup(
    table: SplitTableBatchedEmbeddingBagsCodegen,
    rows: int,
    num_ids: int,
    length: int,
    device: torch.device,
) -> Callable[[], None]:
    """Returns a lookup of random ids with its backward pass."""
    ids = torch.randint(0, rows, (num_ids,), device=device)
    offsets = torch.arange(0, num_ids + 1, length, device=device)
    gradients = torch.randn_like(table(ids, offsets))

    def run() -> None:
        table(ids, offsets).backward(gradients)

    return run

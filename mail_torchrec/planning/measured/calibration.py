"""Measurement of a machine by all of its ranks at once: copies, collectives, lookups, towers.

Shape letters: ``P`` measured points, ``C`` terms that are fitted.
"""

import itertools
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from numpy.typing import NDArray
from torch import nn

from mail_torchrec.distributed.collectives import gather_objects, world_size
from mail_torchrec.distributed.process_group import local_world_size
from mail_torchrec.embeddings.hardware import detect_hardware, preset_of
from mail_torchrec.embeddings.rates.hardware_file import HardwareFile
from mail_torchrec.embeddings.rates.machine_rates import (
    CollectiveRate,
    LookupRate,
    LookupRates,
    MachineRates,
)
from mail_torchrec.utils.host_memory import keep_freed_memory

_REPEATS = 5
_COPY_BYTES = 2**27
_BYTES = (2**12, 2**16, 2**18, 2**20, 2**22, 2**24)
_TABLE_ROWS = 400_000
_COLUMNS = (8, 64)
# Ids, and ids a bag.
_LOOKUPS = ((512, 1), (4_096, 1), (8_192, 16), (32_768, 1), (65_536, 16))
_OPTIMIZERS = {
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
}
_TOWER_ROWS, _TOWER_WIDTHS = 1024, (256, 128, 64, 1)

FloatArray = NDArray[np.float64]


def measure_machine(device: torch.device) -> HardwareFile:
    """Measures and describes the machine; every rank calls it.

    Args:
        device: of this rank.
    """
    of_host = local_world_size()
    detected = detect_hardware(device, of_host)
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return HardwareFile(
        measured_on=(
            f"{world_size()} ranks, {os.cpu_count()} cores a host{gpu}, torch {torch.__version__}"
        ),
        preset=preset_of(device),
        local_world_size=of_host,
        hbm_gib=detected.hbm_gib,
        host_gib=detected.host_gib,
        rates=measure_rates(device),
    )


def measure_rates(device: torch.device) -> MachineRates:
    """Measures the rates of the machine; every rank calls it.

    Args:
        device: of this rank.
    """
    torch.manual_seed(0)
    keep_freed_memory()  # as trainings do
    host = torch.device("cpu")
    lookups = {
        name: LookupRates(
            pooled=_measure_lookups(optimizer, PoolingMode.SUM, device),
            unpooled=_measure_lookups(optimizer, PoolingMode.NONE, device),
        )
        for name, optimizer in _OPTIMIZERS.items()
    }
    return MachineRates(
        world_size=world_size(),
        device="cuda" if device.type == "cuda" else "cpu",
        copy_gb_s=_measure_copy(device),
        host_copy_gb_s=_measure_copy(host),
        all_to_all=_measure_collective(_all_to_all, device),
        all_reduce=_measure_collective(_all_reduce, device),
        reduce_scatter=_measure_collective(_reduce_scatter, device, passes=2),
        lookups=lookups,
        tower_tflops=_measure_towers(device),
    )


def timed(run: Callable[[], object], device: torch.device, repeats: int = _REPEATS) -> float:
    """Returns the median milliseconds of a function that all ranks run at once.

    Args:
        run: the function.
        device: whose work is waited for.
        repeats: times after one to warm up.

    Returns:
        The slowest rank's median.
    """
    found = []
    for _ in range(repeats + 1):
        if world_size() > 1:
            dist.barrier()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append((time.perf_counter() - start) * 1e3)
    return max(gather_objects(median(found[1:])))


def _measure_copy(device: torch.device) -> float:
    """Returns GB/s of copies within a memory; a byte read and written counts once."""
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return _COPY_BYTES / 1e6 / timed(lambda: target.copy_(source), device)


def _all_to_all(values: torch.Tensor, scratch: torch.Tensor) -> None:
    dist.all_to_all_single(scratch, values)


def _all_reduce(values: torch.Tensor, scratch: torch.Tensor) -> None:
    dist.all_reduce(values)


def _reduce_scatter(values: torch.Tensor, scratch: torch.Tensor) -> None:
    """Sums the ranks' vectors, and gathers their gradients in the other direction."""
    part = scratch[: len(values) // world_size()]
    dist.reduce_scatter_tensor(part, values)
    dist.all_gather_into_tensor(scratch, part)


def _measure_collective(
    run: Callable[[torch.Tensor, torch.Tensor], None], device: torch.device, passes: int = 1
) -> CollectiveRate:
    """Fits a latency and a time by bytes to one collective of many sizes.

    Args:
        run: takes a tensor, and one of its size to write to.
        device: of the tensors.
        passes: collectives that ``run`` is made of.
    """
    if world_size() == 1:
        return CollectiveRate(latency_ms=0, ms_a_mb=0)
    share = 1.0 if run is _all_reduce else (world_size() - 1) / world_size()
    points = []
    for size in _BYTES:
        values = torch.ones(size // 4 // world_size() * world_size(), device=device)
        scratch = torch.empty_like(values)
        ms = timed(partial(run, values, scratch), device) / passes
        points.append((round(values.nbytes * share), ms))
    terms_PC = np.array([(1.0, num_bytes / 1e6) for num_bytes, _ in points])
    latency_ms, ms_a_mb = fit(terms_PC, np.array([ms for _, ms in points]))
    return CollectiveRate(latency_ms=latency_ms, ms_a_mb=ms_a_mb, measured=points)


def _measure_lookups(
    optimizer: EmbOptimType, pooling: PoolingMode, device: torch.device
) -> LookupRate:
    """Fits the time of FBGEMM's kernels, forward and backward, to lookups of many shapes."""
    points = []
    for columns in _COLUMNS:
        tables = _build_tables(columns, optimizer, pooling, device)
        for num_ids, length in _LOOKUPS:
            ms = timed(_lookup(tables, num_ids, length, device), device)
            points.append((num_ids, columns, num_ids // length, ms))
    terms_PC = np.array(
        [(1.0, *(count / 1e6 for count in (i, i * c, b, b * c))) for i, c, b, _ in points]
    )
    fixed, *rates = fit(terms_PC, np.array([ms for *_, ms in points]))
    return LookupRate(
        fixed_ms=fixed,
        ms_a_million_ids=rates[0],
        ms_a_million_values=rates[1],
        ms_a_million_bags=rates[2],
        ms_a_million_bag_values=rates[3],
        measured=points,
    )


def _build_tables(
    columns: int, optimizer: EmbOptimType, pooling: PoolingMode, device: torch.device
) -> SplitTableBatchedEmbeddingBagsCodegen:
    on_cuda = device.type == "cuda"
    location = EmbeddingLocation.DEVICE if on_cuda else EmbeddingLocation.HOST
    compute = ComputeDevice.CUDA if on_cuda else ComputeDevice.CPU
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(_TABLE_ROWS, columns, location, compute)],
        optimizer=optimizer,
        pooling_mode=pooling,
        learning_rate=0.01,
        device=device,
    )
    tables.init_embedding_weights_uniform(-0.1, 0.1)  # what memory held before is slow: denormals
    return tables


def _lookup(
    tables: SplitTableBatchedEmbeddingBagsCodegen, num_ids: int, length: int, device: torch.device
) -> Callable[[], None]:
    """Returns a lookup of random ids with its backward pass."""
    ids = torch.randint(0, _TABLE_ROWS, (num_ids,), device=device)
    offsets = torch.arange(0, num_ids + 1, length, device=device)

    gradients = torch.randn_like(tables(ids, offsets))

    def run() -> None:
        tables(ids, offsets).backward(gradients)

    return run


def _measure_towers(device: torch.device) -> float:
    """Returns the TFLOP/s of a small tower's forward pass, backward pass and optimizer."""
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(_TOWER_WIDTHS):
        layers += [nn.Linear(width, following), nn.PReLU()]
    tower = nn.Sequential(*layers).to(device)
    optimizer = torch.optim.Adam(tower.parameters())
    rows = torch.randn(_TOWER_ROWS, _TOWER_WIDTHS[0], device=device)

    def run() -> None:
        optimizer.zero_grad()
        tower(rows).square().mean().backward()
        optimizer.step()

    widths = itertools.pairwise(_TOWER_WIDTHS)
    flops = 6 * _TOWER_ROWS * sum(width * following for width, following in widths)
    return flops / 1e9 / timed(run, device)


def fit(terms_PC: FloatArray, ms_P: FloatArray) -> list[float]:
    """Fits coefficients of at least 0, by the least squares of relative errors.

    Args:
        terms_PC: terms of each point.
        ms_P: milliseconds of each point.
    """
    num_terms = terms_PC.shape[1]
    scaled_PC, ones_P = terms_PC / ms_P[:, None], np.ones(len(ms_P))
    best: tuple[float, list[float]] = (float("inf"), [0.0] * num_terms)
    for chosen in _subsets(range(num_terms)):
        part, *_ = np.linalg.lstsq(scaled_PC[:, chosen], ones_P, rcond=None)
        error = float(np.square(scaled_PC[:, chosen] @ part - ones_P).sum())
        if part.min() >= 0 and error < best[0]:
            found = [0.0] * num_terms
            for term, coefficient in zip(chosen, part.tolist(), strict=True):
                found[term] = coefficient
            best = error, found
    return best[1]


def _subsets(terms: Sequence[int]) -> list[list[int]]:
    """Lists the subsets that are not empty."""
    sizes = range(1, len(terms) + 1)
    return [list(part) for size in sizes for part in itertools.combinations(terms, size)]

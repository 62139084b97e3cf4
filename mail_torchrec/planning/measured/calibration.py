"""Measurement of a machine by all of its ranks at once: copies, collectives, lookups, steps.

Shape letters: ``P`` measured points, ``C`` terms that are fitted.
"""

import itertools
import os
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from mail_torchrec.distributed.collectives import world_size
from mail_torchrec.distributed.process_group import local_world_size
from mail_torchrec.embeddings.hardware import detect_hardware, measured_hardware, preset_of
from mail_torchrec.embeddings.rates.hardware_file import HardwareFile
from mail_torchrec.embeddings.rates.machine_rates import CollectiveRate, MachineRates
from mail_torchrec.planning.measured.fitting import fit, timed
from mail_torchrec.planning.measured.lookup_rates import measure_lookups
from mail_torchrec.planning.measured.step_rates import measure_steps
from mail_torchrec.utils.host_memory import keep_freed_memory

_COPY_BYTES = 2**27
_BYTES = (2**12, 2**16, 2**18, 2**20, 2**22, 2**24)
_TOWER_ROWS, _TOWER_WIDTHS = 1024, (256, 128, 64, 1)


def measure_machine(device: torch.device) -> HardwareFile:
    """Measures and describes the machine; every rank calls it.

    Args:
        device: of this rank.
    """
    of_host = local_world_size()
    detected = detect_hardware(device, of_host)
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    file = HardwareFile(
        measured_on=(
            f"{world_size()} ranks, {os.cpu_count()} cores a host{gpu}, torch {torch.__version__}"
        ),
        preset=preset_of(device),
        local_world_size=of_host,
        hbm_gib=detected.hbm_gib,
        host_gib=detected.host_gib,
        rates=_measure_parts(device),
    )
    steps = measure_steps(device, measured_hardware(file, "hardware"))
    return file.model_copy(update={"rates": file.rates.model_copy(update={"steps": steps})})


def _measure_parts(device: torch.device) -> MachineRates:
    """Measures all rates but those of whole steps."""
    torch.manual_seed(0)
    keep_freed_memory()  # as trainings do
    return MachineRates(
        world_size=world_size(),
        device="cuda" if device.type == "cuda" else "cpu",
        copy_gb_s=_measure_copy(device),
        host_copy_gb_s=_measure_copy(torch.device("cpu")),
        all_to_all=_measure_collective(_all_to_all, device),
        all_reduce=_measure_collective(_all_reduce, device),
        reduce_scatter=_measure_collective(_reduce_scatter, device, passes=2),
        lookups=measure_lookups(device),
        tower_tflops=_measure_towers(device),
    )


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

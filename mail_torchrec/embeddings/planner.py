"""Planner: from constraints and hardware to candidate plans and the memory that they lack.

Training and ``mail-torchrec plan`` share it, so that both make the same plan.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn
from torchrec.distributed.types import ModuleSharder

from mail_torchrec.embeddings.constraints import check_constraints, parameter_constraints
from mail_torchrec.embeddings.enumerator import enumerate_sharding_options
from mail_torchrec.embeddings.hardware import Hardware
from mail_torchrec.embeddings.partitioner import CandidatePlan, propose_plans
from mail_torchrec.embeddings.rates.machine_rates import MachineRates
from mail_torchrec.embeddings.rates.shard_times import LookedUp, PlanLatency, shard_times
from mail_torchrec.embeddings.settings import OptimizerName, ShardingSettings
from mail_torchrec.embeddings.sharding_options import ShardingOption
from mail_torchrec.embeddings.storage import MEMORY_KINDS, MemoryKind, format_bytes
from mail_torchrec.embeddings.workload import Workload

_MEMORY_NAMES: dict[MemoryKind, str] = {"hbm": "GPU memory", "host": "host memory"}


def feasible_options(
    tables: nn.Module,
    sharders: Sequence[ModuleSharder[nn.Module]],
    settings: ShardingSettings,
    workload: Workload,
    hardware: Hardware,
    world_size: int,
) -> dict[str, list[ShardingOption]]:
    """Enumerates every table's sharding options within the constraints.

    Args:
        tables: holds both collections, on the meta device.
        sharders: of both collections.
        settings: the constraints.
        workload: tables and batches.
        hardware: of every rank.
        world_size: ranks.

    Returns:
        The options by table name.

    Raises:
        ValueError: a constraint names an unknown table, does not go with the hardware or the
            optimizer, or leaves a table no option.
    """
    check_constraints(settings, workload, hardware, world_size)
    local_world_size = min(hardware.local_world_size, world_size)
    options = enumerate_sharding_options(
        tables,
        sharders,
        parameter_constraints(settings, workload, world_size, local_world_size),
        hardware.topology(world_size),
        workload.batch_size,
        workload.optimizer,
        prefetches=settings.prefetch,
        stages_checkpoints=workload.stages_checkpoints,
    )
    if hardware.rates is None:
        return options
    return {
        table: [_timed(option, settings, workload, hardware.rates, world_size) for option in found]
        for table, found in options.items()
    }


def _timed(
    option: ShardingOption,
    settings: ShardingSettings,
    workload: Workload,
    rates: MachineRates,
    world_size: int,
) -> ShardingOption:
    """Estimates an option's times by measured rates; those of other kernels stay as published."""
    if option.compute_kernel != "fused":
        return option
    factors = workload.pooling_factors[option.table]
    looked_up = LookedUp(
        option.module_path,
        sum(factors),
        len(factors),
        workload.sizes[option.table][0],
        workload.batch_size,
        *_value_bytes(settings),
    )
    lookup_S, comms_S = shard_times(
        rates, workload.optimizer, looked_up, option.sharding_type, option.sizes_S2, world_size
    )
    return replace(option, lookup_S=lookup_S, comms_S=comms_S)


def _value_bytes(settings: ShardingSettings) -> tuple[int, int]:
    """Returns the bytes of a vector's value, and of a gradient's, on their way between ranks."""
    if settings.communication is None:
        return 4, 4
    forward, backward = settings.communication.forward, settings.communication.backward
    return (4 if forward == "fp32" else 2), (4 if backward == "fp32" else 2)


def candidate_plans(
    options: dict[str, list[ShardingOption]],
    hardware: Hardware,
    world_size: int,
    optimizer: OptimizerName,
    *,
    of_each_kind: bool = False,
) -> list[CandidatePlan]:
    """Proposes plans from the fastest to the slowest, whatever memory they need.

    Args:
        options: sharding options by table name.
        hardware: of every rank.
        world_size: ranks.
        optimizer: of the tables.
        of_each_kind: plans of one sharding type for each collection too, also without rates.
    """
    sizes = world_size, min(hardware.local_world_size, world_size)
    latency = plan_latency(hardware, optimizer)
    return propose_plans(options, *sizes, latency, of_each_kind=of_each_kind)


def plan_latency(hardware: Hardware, optimizer: OptimizerName) -> PlanLatency | None:
    """Returns the latencies of plans; None where the hardware was not measured."""
    return None if hardware.rates is None else PlanLatency(hardware.rates, optimizer)


def table_capacity(hardware: Hardware, dense_bytes: float) -> dict[MemoryKind, float]:
    """Returns the bytes of each memory that a rank has left for tables beside the towers."""
    capacity: dict[MemoryKind, float] = {kind: hardware.capacity[kind] for kind in MEMORY_KINDS}
    capacity["hbm" if hardware.device == "cuda" else "host"] -= dense_bytes
    return capacity


def describe_shortage(plan: CandidatePlan, capacity: dict[MemoryKind, float]) -> str:
    """Describes the memory that a plan lacks and how much of it; empty if the plan fits."""
    return ", ".join(
        f"{format_bytes(lacking)} of {_MEMORY_NAMES[kind]} (the fullest rank needs "
        f"{format_bytes(float(plan.memory_R[kind].max()))}, "
        f"{format_bytes(max(capacity[kind], 0))} are left for tables)"
        for kind, lacking in plan.excess(capacity).items()
    )

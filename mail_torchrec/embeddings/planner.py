"""Planner: from constraints and hardware to candidate plans and the memory that they lack.

Training and ``mail-torchrec plan`` share it, so that both make the same plan.
"""

from collections.abc import Sequence

from torch import nn
from torchrec.distributed.types import ModuleSharder

from mail_torchrec.embeddings.constraints import check_constraints, parameter_constraints
from mail_torchrec.embeddings.enumerator import enumerate_sharding_options
from mail_torchrec.embeddings.hardware import Hardware
from mail_torchrec.embeddings.partitioner import CandidatePlan, propose_plans
from mail_torchrec.embeddings.settings import ShardingSettings
from mail_torchrec.embeddings.sharding_options import ShardingOption
from mail_torchrec.embeddings.storage import MEMORY_KINDS, MemoryKind, format_bytes
from mail_torchrec.embeddings.workload import Workload

_MEMORY_NAMES: dict[MemoryKind, str] = {"hbm": "GPU memory", "host": "host memory", "ssd": "SSD"}


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
    return enumerate_sharding_options(
        tables,
        sharders,
        parameter_constraints(settings, workload, world_size, local_world_size),
        hardware.topology(world_size),
        workload.batch_size,
        workload.optimizer,
    )


def candidate_plans(
    options: dict[str, list[ShardingOption]], hardware: Hardware, world_size: int
) -> list[CandidatePlan]:
    """Proposes plans from the fastest to the slowest, whatever memory they need."""
    return propose_plans(options, world_size, min(hardware.local_world_size, world_size))


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

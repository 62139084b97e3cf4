"""From constraints and hardware to a sharding plan: what training and ``mail-torchrec plan`` share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.sharding_plan import placement
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    KeyValueParams,
    ModuleSharder,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)

from mail_torchrec.embeddings.empty_shards import without_empty_shards
from mail_torchrec.embeddings.hardware import Hardware
from mail_torchrec.embeddings.partitioner import Layout, family
from mail_torchrec.embeddings.sharding_options import (
    MEMORIES,
    Choice,
    Memory,
    OptimizerName,
    enumerate_choices,
    num_bytes,
)
from mail_torchrec.settings import Settings

ShardingName = Literal[
    "table_wise", "column_wise", "row_wise", "table_row_wise", "table_column_wise", "grid_shard"
]
KernelName = Literal["fused", "fused_uvm", "fused_uvm_caching", "key_value"]
_OVER_HOSTS = {"table_row_wise", "table_column_wise", "grid_shard"}


class ShardingSettings(Settings):
    """What the planner may choose from, and what it should know."""

    enabled: bool = True
    """False keeps whole tables in the one process as plain autograd modules, which any table
    optimizer can train."""
    types: list[ShardingName] = Field(
        default=["table_wise", "column_wise", "row_wise"], min_length=1
    )
    """Sharding types allowed for every table; one alone forces it."""
    tables: dict[str, list[ShardingName]] = {}
    """Table -> the types allowed for it instead."""
    kernels: list[KernelName] = Field(default=["fused"], min_length=1)
    """Where tables may lie: the device's memory (fused); on CUDA also the host's, read in place
    (fused_uvm) or through a cache on the GPU (fused_uvm_caching), or local SSDs (key_value)."""
    table_kernels: dict[str, list[KernelName]] = {}
    """Table -> the kernels allowed for it instead."""
    cache_load_factor: float = Field(default=0.2, gt=0, lt=1)
    """fused_uvm_caching: the share of a table's rows that the GPU's cache has room for."""
    ssd_directory: str | None = None
    """key_value: a folder on a local SSD."""
    min_partition: int | None = Field(default=None, ge=4)
    """Column-wise: the narrowest shard, in columns (the planner's own default is wide enough to
    keep small tables whole)."""
    lengths: dict[str, float] = {}
    """List column -> its mean length, for the planner's estimates; by default the most,
    max_length."""


@dataclass(frozen=True)
class Workload:
    """What the tables are and what a step asks of them."""

    sizes: dict[str, tuple[int, int]]
    """Table -> stored rows and columns."""
    lengths: dict[str, list[float]]
    """Table -> mean ids a row of the batch, of each key that looks it up."""
    batch_size: int
    """Rows a rank."""
    optimizer: OptimizerName


def choices_of(
    tables: nn.Module,
    sharders: Sequence[ModuleSharder[nn.Module]],
    settings: ShardingSettings,
    workload: Workload,
    machine: Hardware,
    world_size: int,
) -> dict[str, list[Choice]]:
    """Table -> its choices within the constraints.

    Args:
        tables: holds both collections, on the meta device.
        sharders: of both.
        settings: the constraints.
        workload: what is asked of the tables.
        machine: the ranks' hardware.
        world_size: ranks.

    Raises:
        ValueError: a constraint names an unknown table, does not go with the hardware or the
            optimizer, or leaves a table no choice.
    """
    check_constraints(settings, workload, machine, world_size)
    given = constraints(settings, workload, world_size, min(machine.ranks_a_host, world_size))
    return enumerate_choices(
        tables,
        sharders,
        given,
        machine.topology(world_size),
        workload.batch_size,
        workload.optimizer,
    )


def layouts_of(
    choices: dict[str, list[Choice]], machine: Hardware, world_size: int
) -> list[Layout]:
    """Layouts from the fastest to the leanest; memory is not looked at."""
    return family(choices, world_size, min(machine.ranks_a_host, world_size))


def check_constraints(
    settings: ShardingSettings, workload: Workload, machine: Hardware, world_size: int
) -> None:
    """Raises ValueError as :func:`choices_of`."""
    for key, given in (("tables", settings.tables), ("table_kernels", settings.table_kernels)):
        if unknown := sorted(set(given) - set(workload.sizes)):
            raise ValueError(
                f"sharding.{key}: no table is called {unknown}; the tables are "
                f"{', '.join(workload.sizes)}"
            )
        if empty := sorted(name for name, allowed in given.items() if not allowed):
            raise ValueError(
                f"sharding.{key}: {empty} should be allowed something, received an empty list"
            )
    kernels = {
        *settings.kernels,
        *(kernel for allowed in settings.table_kernels.values() for kernel in allowed),
    }
    if machine.device == "cpu" and kernels != {"fused"}:
        raise ValueError(
            f"sharding.kernels: {sorted(kernels - {'fused'})} exist on CUDA alone, and the tables "
            "lie on CPU; use [fused]"
        )
    if "key_value" in kernels and workload.optimizer != "rowwise_adagrad":
        raise ValueError(
            "sharding.kernels: key_value tables train with rowwise_adagrad, received "
            f"train.tables.name={workload.optimizer}"
        )
    types = {*settings.types, *(kind for allowed in settings.tables.values() for kind in allowed)}
    ranks_a_host = min(machine.ranks_a_host, world_size)
    if world_size % ranks_a_host and types & _OVER_HOSTS:
        raise ValueError(
            f"sharding.types: {sorted(types & _OVER_HOSTS)} need hosts of equally many ranks, and "
            f"{world_size} ranks do not fill hosts of "
            f"{ranks_a_host}"
        )


def allowed_types(
    settings: ShardingSettings, workload: Workload, world_size: int, ranks_a_host: int
) -> dict[str, list[str]]:
    """Table -> the wanted sharding types that give each rank a row; table-wise where none does."""
    return {
        name: without_empty_shards(
            settings.tables.get(name, settings.types), rows, world_size, ranks_a_host
        )
        for name, (rows, _) in workload.sizes.items()
    }


def constraints(
    settings: ShardingSettings, workload: Workload, world_size: int, ranks_a_host: int
) -> dict[str, ParameterConstraints]:
    """The settings, table by table, as TorchRec takes them."""
    cache, ssd = (
        CacheParams(load_factor=settings.cache_load_factor),
        KeyValueParams(ssd_storage_directory=settings.ssd_directory),
    )
    made = {}
    for name, types in allowed_types(settings, workload, world_size, ranks_a_host).items():
        kernels = settings.table_kernels.get(name, settings.kernels)
        made[name] = ParameterConstraints(
            sharding_types=types,
            compute_kernels=list(kernels),
            min_partition=settings.min_partition,
            pooling_factors=workload.lengths[name],
            cache_params=cache if "fused_uvm_caching" in kernels else None,
            key_value_params=ssd if "key_value" in kernels else None,
        )
    return made


def sharding_plan(
    layout: Layout, settings: ShardingSettings, device: str, ranks_a_host: int
) -> ShardingPlan:
    """A layout as TorchRec shards by it."""
    modules: dict[str, EmbeddingModuleShardingPlan] = {}
    for table, (choice, ranks) in layout.chosen.items():
        shards = [
            (int(rank), [int(n) for n in offsets], [int(n) for n in sizes])
            for rank, offsets, sizes in zip(ranks, choice.offsets_S2, choice.sizes_S2, strict=True)
        ]
        factor = settings.cache_load_factor if choice.kernel == "fused_uvm_caching" else None
        module = modules.setdefault(choice.module, EmbeddingModuleShardingPlan())
        module[table] = parameter_sharding(
            choice.sharding_type,
            choice.kernel,
            shards,
            device,
            ranks_a_host,
            factor,
            settings.ssd_directory,
        )
    return ShardingPlan(dict(modules))


def parameter_sharding(
    sharding_type: str,
    kernel: str,
    shards: Sequence[tuple[int, list[int], list[int]]],
    device: str,
    ranks_a_host: int,
    cache_load_factor: float | None,
    ssd_directory: str | None,
) -> ParameterSharding:
    """One table's part of a plan; ``shards`` are rank, offsets and sizes."""
    return ParameterSharding(
        sharding_type=sharding_type,
        compute_kernel=kernel,
        ranks=[rank for rank, _, _ in shards],
        sharding_spec=EnumerableShardingSpec(
            [
                ShardMetadata(
                    shard_offsets=offsets,
                    shard_sizes=sizes,
                    placement=placement(device, rank, ranks_a_host),
                )
                for rank, offsets, sizes in shards
            ]
        ),
        cache_params=None
        if cache_load_factor is None
        else CacheParams(load_factor=cache_load_factor),
        key_value_params=KeyValueParams(ssd_storage_directory=ssd_directory)
        if kernel == "key_value"
        else None,
    )


def capacity_for_tables(machine: Hardware, dense_bytes: float) -> dict[Memory, float]:
    """Bytes a rank that are left for tables beside the towers."""
    capacity: dict[Memory, float] = {kind: machine.capacity[kind] for kind in MEMORIES}
    capacity["hbm" if machine.device == "cuda" else "host"] -= dense_bytes
    return capacity


def shortage(layout: Layout, capacity: dict[Memory, float]) -> str:
    """What a layout that does not fit lacks, and of how much."""
    where = {"hbm": "GPU memory", "host": "host memory", "ssd": "SSD"}
    return ", ".join(
        f"{num_bytes(lacking)} of {where[kind]} (the fullest rank needs "
        f"{num_bytes(float(layout.memory_R[kind].max()))}, "
        f"{num_bytes(max(capacity[kind], 0))} are left for tables)"
        for kind, lacking in layout.excess(capacity).items()
    )


def check_no_empty_shard(plan: ShardingPlan) -> None:
    """Refuses what FBGEMM's CPU kernels cannot do.

    Raises:
        ValueError: a rank's shard of a table has no rows.
    """
    for module_plan in plan.plan.values():
        for table, sharding in module_plan.items():
            shards = getattr(sharding.sharding_spec, "shards", [])
            if any(0 in shard.shard_sizes for shard in shards):
                raise ValueError(
                    f"sharding: on CPU every rank needs a row of a {sharding.sharding_type} "
                    f"table, and '{table}' has too few "
                    f"for {len(shards)} ranks; use fewer ranks, or sharding.tables={{{table}: "
                    f"[table_wise]}}"
                )


def cuda_or_cpu(device: torch.device) -> Literal["cuda", "cpu"]:
    """The kind of device that plans know."""
    return "cuda" if device.type == "cuda" else "cpu"

"""Sharding constraints: checked against tables and hardware, and converted to TorchRec's."""

from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.train_pipeline.train_pipelines import PrefetchTrainPipelineSparseDist
from torchrec.distributed.types import CacheParams

from mail_torchrec.embeddings.empty_shards import exclude_empty_shards
from mail_torchrec.embeddings.hardware import Hardware
from mail_torchrec.embeddings.settings import ShardingSettings
from mail_torchrec.embeddings.tables import collection_key
from mail_torchrec.embeddings.workload import Workload

_OVER_HOSTS = {"table_row_wise", "table_column_wise", "grid_shard"}
HAS_PREFETCH_STAGES = "fill_pipeline" in vars(PrefetchTrainPipelineSparseDist)
"""False of TorchRec 1.6, whose pipeline is another one."""


def check_constraints(
    settings: ShardingSettings, workload: Workload, hardware: Hardware, world_size: int
) -> None:
    """Checks the constraints against the tables, their optimizer and the hardware.

    Raises:
        ValueError: a constraint names an unknown table, or the hardware or the optimizer does not
            support a sharding type or a compute kernel.
    """
    if unknown := sorted(set(settings.constraints) - set(workload.sizes)):
        raise ValueError(
            f"sharding.constraints: no table is called {unknown}; the tables are "
            f"{', '.join(workload.sizes)}"
        )
    _check_compute_kernels(settings, hardware)
    _check_prefetch(settings, hardware)
    _check_replicas(settings, workload)
    _check_hosts(settings, hardware, world_size)


def _check_compute_kernels(settings: ShardingSettings, hardware: Hardware) -> None:
    kernels = set(settings.compute_kernels)
    for table in settings.constraints:
        kernels |= set(settings.compute_kernels_of(table))
    if hardware.device == "cpu" and kernels != {"fused"}:
        raise ValueError(
            f"sharding.compute_kernels: {sorted(kernels - {'fused'})} exist on CUDA alone, and the "
            "tables lie on CPU; use [fused]"
        )


def _check_prefetch(settings: ShardingSettings, hardware: Hardware) -> None:
    if not settings.prefetch:
        return
    if hardware.device == "cpu":
        raise ValueError(
            "sharding.prefetch: TorchRec's prefetch pipeline exists on CUDA alone, and the tables "
            "lie on CPU; leave it out"
        )
    allowed = [settings.compute_kernels, *map(settings.compute_kernels_of, settings.constraints)]
    if not any("fused_uvm_caching" in kernels for kernels in allowed):
        raise ValueError(
            "sharding.prefetch fills the caches of fused_uvm_caching tables, which "
            "sharding.compute_kernels does not allow; add fused_uvm_caching, or leave it out"
        )
    if not HAS_PREFETCH_STAGES:
        raise ValueError(
            "sharding.prefetch needs TorchRec 1.8 or newer, whose prefetch pipeline has stages; "
            "install it with torch 2.13 (TORCH=2.13 launch/install.sh), or leave it out"
        )


def _check_replicas(settings: ShardingSettings, workload: Workload) -> None:
    if settings.replicas is None:
        return
    given = f"sharding.replicas={settings.replicas}"
    if "adam" in workload.optimizer:
        raise ValueError(
            f"{given}: TorchRec averages the optimizer state of sgd, adagrad and rowwise_adagrad, "
            f"received train.tables.name={workload.optimizer}; change one of the two"
        )
    tables = list(workload.sizes)
    kernels = {kernel for table in tables for kernel in settings.compute_kernels_of(table)}
    kinds = {kind for table in tables for kind in settings.sharding_types_of(table)}
    if refused := sorted((kernels - {"fused"}) | (kinds & _OVER_HOSTS)):
        raise ValueError(
            f"{given}: copies of tables are whole in the GPUs' memory (compute_kernels=[fused]) "
            f"and are sharded table_wise, column_wise or row_wise; {refused} are allowed too, "
            "leave them out"
        )


def _check_hosts(settings: ShardingSettings, hardware: Hardware, world_size: int) -> None:
    sharding_types = set(settings.sharding_types)
    for table in settings.constraints:
        sharding_types |= set(settings.sharding_types_of(table))
    local_world_size = min(hardware.local_world_size, world_size)
    if world_size % local_world_size and sharding_types & _OVER_HOSTS:
        raise ValueError(
            f"sharding.sharding_types: {sorted(sharding_types & _OVER_HOSTS)} need hosts of "
            f"equally many ranks, and {world_size} ranks do not fill hosts of {local_world_size}"
        )


def feasible_sharding_types(
    settings: ShardingSettings, workload: Workload, world_size: int, local_world_size: int
) -> dict[str, list[str]]:
    """Returns each table's allowed sharding types that leave no shard without rows.

    A table that has too few rows for all of its allowed types gets ``table_wise``.
    """
    return {
        table: exclude_empty_shards(
            settings.sharding_types_of(table), rows, world_size, local_world_size
        )
        for table, (rows, _) in workload.sizes.items()
    }


def parameter_constraints(
    settings: ShardingSettings, workload: Workload, world_size: int, local_world_size: int
) -> dict[str, ParameterConstraints]:
    """Converts the settings to TorchRec's constraints of every table, by its key."""
    cache = CacheParams(load_factor=settings.cache_load_factor)
    feasible = feasible_sharding_types(settings, workload, world_size, local_world_size)
    constraints = {}
    for table, sharding_types in feasible.items():
        kernels = settings.compute_kernels_of(table)
        constraints[collection_key(table)] = ParameterConstraints(
            sharding_types=sharding_types,
            compute_kernels=list(kernels),
            min_partition=settings.min_partition,
            pooling_factors=workload.pooling_factors[table],
            cache_params=cache if "fused_uvm_caching" in kernels else None,
        )
    return constraints

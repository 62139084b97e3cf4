"""Conversion of a candidate plan to TorchRec's sharding plan."""

from collections.abc import Sequence
from typing import NamedTuple

from torchrec.distributed.sharding_plan import placement
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)

from mail_torchrec.embeddings.partitioner import CandidatePlan
from mail_torchrec.embeddings.settings import ShardingSettings
from mail_torchrec.embeddings.tables import collection_key


class PlacedShard(NamedTuple):
    """Rank, first row and column, and rows and columns of one shard."""

    rank: int
    offsets: list[int]
    sizes: list[int]


def build_sharding_plan(
    plan: CandidatePlan, settings: ShardingSettings, device: str, local_world_size: int
) -> ShardingPlan:
    """Builds the plan that TorchRec shards the model by."""
    modules: dict[str, EmbeddingModuleShardingPlan] = {}
    for table, (option, ranks_S) in plan.placements.items():
        shards = [
            PlacedShard(*shard)
            for shard in zip(
                ranks_S.tolist(), option.offsets_S2.tolist(), option.sizes_S2.tolist(), strict=True
            )
        ]
        is_cached = option.compute_kernel == "fused_uvm_caching"
        module = modules.setdefault(option.module_path, EmbeddingModuleShardingPlan())
        module[collection_key(table)] = build_parameter_sharding(
            option.sharding_type,
            option.compute_kernel,
            shards,
            device=device,
            local_world_size=local_world_size,
            cache_load_factor=settings.cache_load_factor if is_cached else None,
        )
    return ShardingPlan(dict(modules))


def build_parameter_sharding(
    sharding_type: str,
    compute_kernel: str,
    shards: Sequence[PlacedShard],
    *,
    device: str,
    local_world_size: int,
    cache_load_factor: float | None = None,
) -> ParameterSharding:
    """Builds one table's part of a sharding plan.

    Args:
        sharding_type: TorchRec's name of the cut.
        compute_kernel: TorchRec's name of the kernel.
        shards: in the order in which the sharding type cuts the table.
        device: ``cuda`` or ``cpu``.
        local_world_size: ranks of one host.
        cache_load_factor: share of the rows that the cache has room for; None without a cache.
    """
    metadata = [
        ShardMetadata(
            shard_offsets=shard.offsets,
            shard_sizes=shard.sizes,
            placement=placement(device, shard.rank, local_world_size),
        )
        for shard in shards
    ]
    is_cached = cache_load_factor is not None
    return ParameterSharding(
        sharding_type=sharding_type,
        compute_kernel=compute_kernel,
        ranks=[shard.rank for shard in shards],
        sharding_spec=EnumerableShardingSpec(metadata),
        cache_params=CacheParams(load_factor=cache_load_factor) if is_cached else None,
    )

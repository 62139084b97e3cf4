"""Planning and sharding: the same plan, or the same error, on every rank."""

import sys
from typing import Any, Literal

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from pydantic import Field
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan, ShardingType
from tqdm import tqdm

from mail_torchrec.collectives import from_rank_0, world_size
from mail_torchrec.embeddings.few_rows import without_empty_shards
from mail_torchrec.settings import Settings

ShardingName = Literal["table_wise", "column_wise", "row_wise", "table_row_wise", "table_column_wise", "grid_shard"]
OptimizerName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "partial_rowwise_adam"]

_FUSED: dict[str, EmbOptimType] = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adam": EmbOptimType.ADAM,
    "partial_rowwise_adam": EmbOptimType.PARTIAL_ROWWISE_ADAM,
}
# FBGEMM's CPU kernels update with these only.
_FUSED_ON_CPU = ("sgd", "adagrad", "rowwise_adagrad")


class TableOptimizerSettings(Settings):
    """The optimizer of every table, fused into FBGEMM's backward."""

    name: OptimizerName = "adagrad"
    """sgd, adagrad, rowwise_adagrad; on CUDA also adam and partial_rowwise_adam (unsharded on CPU: sgd, adagrad, adam)."""
    learning_rate: float = Field(default=0.02, gt=0)
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator of the adaptive ones."""


class ShardingSettings(Settings):
    """What the planner may choose from."""

    enabled: bool = True
    """False keeps whole tables in the one process as plain autograd modules, which any table optimizer can train."""
    types: list[ShardingName] = Field(default=["table_wise", "column_wise", "row_wise"], min_length=1)
    """Sharding types allowed for every table; one alone forces it."""
    tables: dict[str, list[ShardingName]] = {}
    """Table -> the types allowed for it instead."""
    min_partition: int | None = Field(default=None, ge=4)
    """Column-wise: the narrowest shard, in columns (the planner's own default is wide enough to keep small tables whole)."""


class _RowWiseOnCpu(EmbeddingBagCollectionSharder):
    """The pooled sharder with row-wise sharding on CPU too: it works there, the stock sharder only does not offer it."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(dict.fromkeys([*super().sharding_types(compute_device_type), ShardingType.ROW_WISE.value]))


def sharders(optimizer: TableOptimizerSettings, betas: tuple[float, float], device: torch.device) -> list[ModuleSharder[nn.Module]]:
    """Sharders of both collections, the fused optimizer applied; ``betas`` are those of the Adams.

    Raises:
        ValueError: FBGEMM has no such optimizer on this device.
    """
    if device.type == "cpu" and optimizer.name not in _FUSED_ON_CPU:
        raise ValueError(
            f"train.tables.name: FBGEMM has no fused '{optimizer.name}' on CPU; choose one of {', '.join(_FUSED_ON_CPU)}, train on CUDA, "
            "or keep the tables unsharded in one process (sharding.enabled=false), where adam is available"
        )
    fused: dict[str, Any] = {"optimizer": _FUSED[optimizer.name], "learning_rate": optimizer.learning_rate, "eps": optimizer.eps}
    if "adam" in optimizer.name:
        fused |= {"beta1": betas[0], "beta2": betas[1]}
    return [_RowWiseOnCpu(fused_params=fused), EmbeddingCollectionSharder(fused_params=fused)]


def plan_sharding(
    model: nn.Module,
    settings: ShardingSettings,
    all_sharders: list[ModuleSharder[nn.Module]],
    *,
    num_rows: dict[str, int],
    batch_size: int,
    device: torch.device,
    local_world_size: int,
) -> ShardingPlan:
    """Plans on rank 0 and gives every rank the plan or the error; ``num_rows`` is of every table.

    A table with fewer rows than a wanted way of cutting needs is not cut that way, and this is said.

    Raises:
        ValueError: on every rank, where a constraint names an unknown table or no plan meets the constraints.
    """

    def plan() -> ShardingPlan:
        planner = EmbeddingShardingPlanner(
            topology=_topology(device, local_world_size),
            batch_size=batch_size,
            constraints=_constraints(settings, num_rows, local_world_size),
            debug=False,
        )
        try:
            made = planner.plan(model, all_sharders)
            if device.type == "cpu":
                check_no_empty_shard(made)
            return made
        except PlannerError as error:
            raise ValueError(
                f"no sharding plan meets sharding.types={settings.types}, sharding.tables={settings.tables}: {error}"
            ) from error

    return from_rank_0(plan)


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
                    f"sharding: on CPU every rank needs a row of a {sharding.sharding_type} table, and '{table}' has too few "
                    f"for {len(shards)} ranks; use fewer ranks, or sharding.tables={{{table}: [table_wise]}}"
                )


def _topology(device: torch.device, local_world_size: int) -> Topology:
    """The ranks as the planner sees them, with this device's own memory where it is a GPU."""
    hbm_cap = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return Topology(world_size=world_size(), compute_device=device.type, local_world_size=local_world_size, hbm_cap=hbm_cap)


def shard(
    model: nn.Module, plan: ShardingPlan, all_sharders: list[ModuleSharder[nn.Module]], device: torch.device
) -> DistributedModelParallel:
    """Puts the tables where the plan says, and wraps the dense rest in DistributedDataParallel."""
    group = dist.group.WORLD
    assert group is not None
    return DistributedModelParallel(
        module=model, env=ShardingEnv.from_process_group(group), device=device, plan=plan, sharders=all_sharders
    )


def _constraints(settings: ShardingSettings, num_rows: dict[str, int], local_world_size: int) -> dict[str, ParameterConstraints]:
    if unknown := sorted(set(settings.tables) - set(num_rows)):
        raise ValueError(f"sharding.tables: no table is called {unknown}; the tables are {', '.join(num_rows)}")
    wanted: dict[str, list[str]] = {name: list(settings.tables.get(name, settings.types)) for name in num_rows}
    allowed = {name: without_empty_shards(types, num_rows[name], world_size(), local_world_size) for name, types in wanted.items()}
    if small := [name for name in num_rows if not set(allowed[name]) & set(wanted[name])]:
        tqdm.write(f"sharding: {', '.join(small)} too small for {world_size()} ranks to have a row each: table_wise", file=sys.stderr)
    return {name: ParameterConstraints(sharding_types=types, min_partition=settings.min_partition) for name, types in allowed.items()}

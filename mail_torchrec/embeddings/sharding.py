"""Planning and sharding: the same plan, or the same error, on every rank."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from pydantic import Field
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan, ShardingType
from tqdm import tqdm

from mail_torchrec.distributed.collectives import from_rank_0, world_size
from mail_torchrec.embeddings.hardware import Hardware, this_hardware
from mail_torchrec.embeddings.partitioner import Layout, fastest_that_fits, nearest_miss
from mail_torchrec.embeddings.plan_file import MadeFor, load_plan
from mail_torchrec.embeddings.planner import (
    ShardingSettings,
    Workload,
    allowed_types,
    capacity_for_tables,
    check_constraints,
    check_no_empty_shard,
    choices_of,
    cuda_or_cpu,
    layouts_of,
    sharding_plan,
    shortage,
)
from mail_torchrec.embeddings.sharding_options import OptimizerName
from mail_torchrec.settings import Settings

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
    """sgd, adagrad, rowwise_adagrad; on CUDA also adam and partial_rowwise_adam (unsharded on CPU:
    sgd, adagrad, adam)."""
    learning_rate: float = Field(default=0.02, gt=0)
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator of the adaptive ones."""


class _RowWiseOnCpu(EmbeddingBagCollectionSharder):
    """The pooled sharder with row-wise sharding on CPU too: it works there, the stock sharder only does not offer it."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(
            dict.fromkeys(
                [*super().sharding_types(compute_device_type), ShardingType.ROW_WISE.value]
            )
        )


def sharders(
    optimizer: TableOptimizerSettings, betas: tuple[float, float], device: torch.device
) -> list[ModuleSharder[nn.Module]]:
    """Sharders of both collections, the fused optimizer applied; ``betas`` are those of the Adams.

    Raises:
        ValueError: FBGEMM has no such optimizer on this device.
    """
    if device.type == "cpu" and optimizer.name not in _FUSED_ON_CPU:
        raise ValueError(
            f"train.tables.name: FBGEMM has no fused '{optimizer.name}' on CPU; choose one of "
            f"{', '.join(_FUSED_ON_CPU)}, train on CUDA, "
            "or keep the tables unsharded in one process (sharding.enabled=false), where adam is "
            "available"
        )
    fused: dict[str, Any] = {
        "optimizer": _FUSED[optimizer.name],
        "learning_rate": optimizer.learning_rate,
        "eps": optimizer.eps,
    }
    if "adam" in optimizer.name:
        fused |= {"beta1": betas[0], "beta2": betas[1]}
    return [_RowWiseOnCpu(fused_params=fused), EmbeddingCollectionSharder(fused_params=fused)]


def plan_sharding(
    tables: nn.Module,
    settings: ShardingSettings,
    all_sharders: list[ModuleSharder[nn.Module]],
    *,
    workload: Workload,
    device: torch.device,
    local_world_size: int,
    dense_bytes: int,
    saved: Path | None = None,
) -> tuple[ShardingPlan, MadeFor]:
    """Plans on rank 0, or reads a saved plan there, and gives every rank the plan or the error.

    A table with fewer rows than a wanted way of cutting needs is not cut that way, and this is
    said.

    Args:
        tables: the model, or whatever holds its collections under the same names.
        settings: the constraints.
        all_sharders: of both collections.
        workload: the tables and what a step asks of them.
        device: this rank's.
        local_world_size: ranks a host.
        dense_bytes: what the towers and their optimizers take of a rank's memory.
        saved: a plan file to be used instead of planning.

    Raises:
        ValueError: on every rank, where a constraint names an unknown table or cannot be met, the
            tables do not fit, or the saved plan was made for another job.
    """
    kind = cuda_or_cpu(device)
    job = MadeFor(world_size(), local_world_size, kind, workload.optimizer, workload.sizes)

    def plan() -> ShardingPlan:
        machine = this_hardware(device, local_world_size)
        check_constraints(settings, workload, machine, world_size())
        if saved is not None:
            made = load_plan(saved, job, settings.ssd_directory)
        else:
            _say_too_small(settings, workload, local_world_size)
            choices = choices_of(tables, all_sharders, settings, workload, machine, world_size())
            layouts = layouts_of(choices, machine, world_size())
            made = sharding_plan(
                _fitting(layouts, settings, machine, dense_bytes), settings, kind, local_world_size
            )
        if kind == "cpu":
            check_no_empty_shard(made)
        return made

    return from_rank_0(plan), job


def _say_too_small(settings: ShardingSettings, workload: Workload, local_world_size: int) -> None:
    allowed = allowed_types(settings, workload, world_size(), local_world_size)
    if small := [
        name
        for name, types in allowed.items()
        if not set(types) & set(settings.tables.get(name, settings.types))
    ]:
        tqdm.write(
            f"sharding: {', '.join(small)} too small for {world_size()} ranks to have a row "
            "each: table_wise",
            file=sys.stderr,
        )


def _fitting(
    layouts: list[Layout], settings: ShardingSettings, machine: Hardware, dense_bytes: int
) -> Layout:
    """The fastest layout that fits beside the towers; raises ValueError where none does."""
    capacity = capacity_for_tables(machine, dense_bytes)
    layout = fastest_that_fits(layouts, capacity)
    if layout is None:
        lacking = shortage(nearest_miss(layouts, capacity), capacity)
        raise ValueError(
            f"no sharding plan meets sharding.types={settings.types}, "
            f"sharding.tables={settings.tables}, sharding.kernels="
            f"{settings.kernels}: the best lacks {lacking}; `mail-torchrec plan` says what helps"
        )
    return layout


def shard(
    model: nn.Module,
    plan: ShardingPlan,
    all_sharders: list[ModuleSharder[nn.Module]],
    device: torch.device,
) -> DistributedModelParallel:
    """Puts the tables where the plan says, and wraps the dense rest in DistributedDataParallel."""
    group = dist.group.WORLD
    assert group is not None
    return DistributedModelParallel(
        module=model,
        env=ShardingEnv.from_process_group(group),
        device=device,
        plan=plan,
        sharders=all_sharders,
    )

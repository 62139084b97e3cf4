"""Sharding of the tables by one plan, which every rank shares.

Rank 0 plans or reads a plan file; the plan, or the error, is broadcast to all ranks.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import (
    DefaultDataParallelWrapper,
    DistributedModelParallel,
)
from torchrec.distributed.types import (
    ModuleSharder,
    ShardingEnv,
    ShardingPlan,
    ShardingType,
)

from mail_torchrec.distributed.collectives import broadcast_from_rank_0, world_size
from mail_torchrec.embeddings.communication.codecs import build_codecs
from mail_torchrec.embeddings.communication.dense_gradients import exchange_in_bfloat16
from mail_torchrec.embeddings.communication.replicas import (
    ReplicatedModelParallel,
    ShardingGroup,
    sharding_group,
)
from mail_torchrec.embeddings.constraints import check_constraints, feasible_sharding_types
from mail_torchrec.embeddings.empty_shards import check_no_empty_shard
from mail_torchrec.embeddings.hardware import Hardware, detect_hardware
from mail_torchrec.embeddings.partitioner import (
    CandidatePlan,
    fastest_fitting_plan,
    least_excess_plan,
)
from mail_torchrec.embeddings.plan_file import PlanContext, load_plan
from mail_torchrec.embeddings.planner import (
    candidate_plans,
    describe_shortage,
    feasible_options,
    table_capacity,
)
from mail_torchrec.embeddings.settings import ShardingSettings, TableOptimizerSettings
from mail_torchrec.embeddings.sharding_plan import build_sharding_plan
from mail_torchrec.embeddings.workload import Workload
from mail_torchrec.utils.logging import get_logger

_LOGGER = get_logger(__name__)
_FUSED_OPTIMIZERS: dict[str, EmbOptimType] = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adam": EmbOptimType.ADAM,
    "partial_rowwise_adam": EmbOptimType.PARTIAL_ROWWISE_ADAM,
}
# FBGEMM's CPU kernels have these optimizers only.
_FUSED_ON_CPU = ("sgd", "adagrad", "rowwise_adagrad")
# The others, and the CPU kernel of pooled tables, take a weight decay and silently do without.
_DECAYING_ON_CUDA = ("rowwise_adagrad", "adam", "partial_rowwise_adam")


class _RowWiseOnCpuSharder(EmbeddingBagCollectionSharder):
    """Pooled sharder that offers row-wise sharding on CPU too.

    Row-wise sharding works on CPU; TorchRec's own sharder does not offer it there.
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        stock = super().sharding_types(compute_device_type)
        return list(dict.fromkeys([*stock, ShardingType.ROW_WISE.value]))


def build_sharders(
    optimizer: TableOptimizerSettings,
    betas: tuple[float, float],
    device: torch.device,
    sharding: ShardingSettings | None = None,
    batch_size: int = 1,
) -> list[ModuleSharder[nn.Module]]:
    """Builds the sharders of both collections, with the fused optimizer.

    Args:
        optimizer: of the tables.
        betas: decay rates of the two Adam optimizers' moments.
        device: of the tables.
        sharding: number formats of the exchange, and the prefetch into caches; None: defaults.
        batch_size: rows of a rank.

    Raises:
        ValueError: FBGEMM does not have this optimizer on this device.
    """
    if device.type == "cpu" and optimizer.name not in _FUSED_ON_CPU:
        raise ValueError(
            f"train.tables.name: FBGEMM has no fused '{optimizer.name}' on CPU; choose one of "
            f"{', '.join(_FUSED_ON_CPU)}, train on CUDA, or keep the tables unsharded in one "
            "process (sharding.enabled=false), where adam is available"
        )
    fused: dict[str, Any] = {
        "optimizer": _FUSED_OPTIMIZERS[optimizer.name],
        "learning_rate": optimizer.learning_rate,
        "eps": optimizer.eps,
    }
    if "adam" in optimizer.name:
        fused |= {"beta1": betas[0], "beta2": betas[1]}
    if optimizer.max_gradient is not None:
        fused |= {"gradient_clipping": True, "max_gradient": optimizer.max_gradient}
    if optimizer.weight_decay:
        _check_weight_decay(optimizer, device)
        fused["weight_decay"] = optimizer.weight_decay
        if optimizer.name == "rowwise_adagrad":
            fused["weight_decay_mode"] = WeightDecayMode.DECOUPLE
    if device.type == "cuda":
        # Tables in the host's memory are pages of it that the GPU reads, which do not move to and
        # fro as those of cudaMallocManaged may, and which every driver has.
        fused["uvm_host_mapped"] = True
    sharding = sharding or ShardingSettings()
    if sharding.prefetch:
        fused["prefetch_pipeline"] = True
    codecs = build_codecs(sharding.communication, batch_size)
    return [
        _RowWiseOnCpuSharder(fused_params=fused, qcomm_codecs_registry=codecs),
        EmbeddingCollectionSharder(fused_params=fused, qcomm_codecs_registry=codecs),
    ]


def _check_weight_decay(optimizer: TableOptimizerSettings, device: torch.device) -> None:
    """Refuses a weight decay that FBGEMM's kernels would take and ignore."""
    decaying = _DECAYING_ON_CUDA if device.type == "cuda" else ()
    if optimizer.name not in decaying:
        raise ValueError(
            f"train.tables.weight_decay: FBGEMM's '{optimizer.name}' on {device.type.upper()} has "
            f"none; leave it out, or train on CUDA with one of {', '.join(_DECAYING_ON_CUDA)}"
        )


def plan_sharding(
    tables: nn.Module,
    settings: ShardingSettings,
    sharders: list[ModuleSharder[nn.Module]],
    *,
    workload: Workload,
    device: torch.device,
    local_world_size: int,
    dense_bytes: int,
    saved: Path | None = None,
) -> tuple[ShardingPlan, PlanContext]:
    """Plans on rank 0, or reads a saved plan there, and gives every rank the plan or the error.

    Tables with too few rows for their row-wise sharding types are placed table-wise, and logged.

    Args:
        tables: the model, or any module that holds its collections under the same names.
        settings: the constraints.
        sharders: of both collections.
        workload: tables and batches.
        device: of this rank.
        local_world_size: ranks of one host, of all copies of the tables.
        dense_bytes: memory of a rank that the towers and their optimizers take.
        saved: a plan file to use instead of planning.

    Returns:
        The plan, and the context that it was made for.

    Raises:
        ValueError: on every rank, if a constraint names an unknown table or cannot be met, the
            tables do not fit, or the saved plan was made for another job.
    """
    kind = device_kind(device)
    group = sharding_group(settings.replicas, world_size(), local_world_size, kind)
    ranks, of_host = group
    context = PlanContext(*group, kind, workload.optimizer, workload.sizes)

    def plan() -> ShardingPlan:
        hardware = detect_hardware(device, local_world_size, settings.hardware)
        hardware = replace(hardware, local_world_size=of_host)
        check_constraints(settings, workload, hardware, ranks)
        if saved is not None:
            found = load_plan(saved, context)
        else:
            _log_small_tables(settings, workload, group)
            options = feasible_options(tables, sharders, settings, workload, hardware, ranks)
            plans = candidate_plans(options, hardware, ranks, workload.optimizer)
            fitting = _fitting_plan(plans, settings, hardware, dense_bytes)
            found = build_sharding_plan(fitting, settings, kind, of_host)
        if kind == "cpu":
            check_no_empty_shard(found)
        return found

    return broadcast_from_rank_0(plan), context


def device_kind(device: torch.device) -> str:
    """Returns the kind of device that plans distinguish: ``cuda`` or ``cpu``."""
    return "cuda" if device.type == "cuda" else "cpu"


def _log_small_tables(settings: ShardingSettings, workload: Workload, group: ShardingGroup) -> None:
    feasible = feasible_sharding_types(settings, workload, *group)
    small = [
        table
        for table, sharding_types in feasible.items()
        if not set(sharding_types) & set(settings.sharding_types_of(table))
    ]
    if small:
        _LOGGER.info(
            "sharding: %s too small for %d ranks to have a row each: table_wise",
            ", ".join(small),
            group.world_size,
        )


def _fitting_plan(
    plans: list[CandidatePlan], settings: ShardingSettings, hardware: Hardware, dense_bytes: int
) -> CandidatePlan:
    """Returns the fastest plan that fits beside the towers; raises ValueError if none does."""
    capacity = table_capacity(hardware, dense_bytes)
    fitting = fastest_fitting_plan(plans, capacity)
    if fitting is None:
        shortage = describe_shortage(least_excess_plan(plans, capacity), capacity)
        constraints = {
            table: constraint.model_dump(exclude_none=True)
            for table, constraint in settings.constraints.items()
        }
        raise ValueError(
            f"no sharding plan meets sharding.sharding_types={settings.sharding_types}, "
            f"sharding.compute_kernels={settings.compute_kernels}, "
            f"sharding.constraints={constraints}: the best lacks {shortage}; "
            "`mail-torchrec plan` suggests changes that help"
        )
    return fitting


def shard(
    model: nn.Module,
    plan: ShardingPlan,
    sharders: list[ModuleSharder[nn.Module]],
    device: torch.device,
    *,
    replicas: int | None = None,
    accumulates: bool = False,
    dense_in_bfloat16: bool = False,
) -> DistributedModelParallel:
    """Shards the tables by a plan and wraps the dense rest in DistributedDataParallel.

    A dense rest that is frozen has nothing to exchange, and is not wrapped.

    Args:
        model: with its tables on the meta device.
        plan: of the tables.
        sharders: of both collections.
        device: of this rank.
        replicas: copies of the tables; None for one.
        accumulates: whether gradients stay on their rank in some steps.
        dense_in_bfloat16: whether the towers' gradients are averaged over ranks in bfloat16.
    """
    group = dist.group.WORLD
    assert group is not None
    dense = [child for name, child in model.named_children() if name not in plan.plan]
    is_trained = any(value.requires_grad for child in dense for value in child.parameters())
    if not is_trained:
        for child in dense:
            child.to(device)
    options: dict[str, Any] = {
        "device": device,
        "plan": plan,
        "sharders": sharders,
        "init_data_parallel": is_trained,
        # A static graph, TorchRec's default, has to exchange gradients in its first step.
        "data_parallel_wrapper": DefaultDataParallelWrapper(
            static_graph=not accumulates, find_unused_parameters=accumulates
        ),
    }
    sharded = (
        DistributedModelParallel(model, env=ShardingEnv.from_process_group(group), **options)
        if replicas is None
        else ReplicatedModelParallel(model, replicas=replicas, **options)
    )
    if dense_in_bfloat16:
        exchange_in_bfloat16(sharded)
    return sharded

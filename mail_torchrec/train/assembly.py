"""From a configuration to a model that can train: the one place where the parts are put together."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingPlan

from mail_torchrec.collectives import rank, world_size
from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.lookups import Lookups, plan_lookups
from mail_torchrec.embeddings.initial import initialise_tables
from mail_torchrec.embeddings.sharding import plan_sharding, shard, sharders
from mail_torchrec.embeddings.tables import build_tables, table_sizes
from mail_torchrec.model import Mail, Towers
from mail_torchrec.phases import phase
from mail_torchrec.towers.registry import needs_first_order, needs_match
from mail_torchrec.train.batch_norm import synchronise_batch_norms
from mail_torchrec.train.optimizers import build_optimizer
from mail_torchrec.train.runtime import local_world_size


class Pipeline(Protocol):
    """What drives a model over batches: TorchRec's, or ours for whole tables."""

    def progress(self, batches: Iterator[Any]) -> Any:
        """One step; its outputs. Raises StopIteration when there is no batch left."""


class WholePipeline:
    """One step after another: whole tables have no communication to hide."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._model, self._optimizer, self._device = model, optimizer, device

    def progress(self, batches: Iterator[Any]) -> Any:
        """One step; its outputs. Raises StopIteration when there is no batch left."""
        batch = next(batches).to(self._device, non_blocking=True)
        if not self._model.training:
            return self._model(batch)[1]
        self._optimizer.zero_grad()
        loss, outputs = self._model(batch)
        loss.backward()
        self._optimizer.step()
        return outputs


@dataclass
class Assembled:
    """A model on its ranks, with what drives it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    pipeline: Pipeline
    lookups: Lookups
    device: torch.device
    plan: ShardingPlan | None
    """None where the tables are not sharded."""

    def is_pipelined(self) -> bool:
        """Whether TorchRec's pipeline took both table collections in, which it leaves out without a word where it cannot."""
        return self.plan is None or len(self.pipeline._pipelined_modules) == 2  # type: ignore[attr-defined]


def lookups_of(config: Config) -> Lookups:
    """The lookups that a configuration's tower asks for.

    Raises:
        ValueError: the tower or its options do not fit, or the schema leaves no room for them.
    """
    tower = config.model.tower, config.model.tower_options
    return plan_lookups(config.schema_, needs_match=needs_match(*tower), needs_first_order=needs_first_order(*tower))


def assemble(config: Config, encoders: Encoders, device: torch.device) -> Assembled:
    """Meta tables -> towers -> plan -> shard -> initial weights -> optimizers -> pipeline.

    Raises:
        ValueError: a tower, an optimizer or a sharding constraint that cannot be had; see there.
    """
    lookups = lookups_of(config)
    torch.manual_seed(config.train.seed)
    towers = Towers(config.model, config.schema_, lookups, encoders.num_rows)
    if config.sharding.enabled:
        assembled = _sharded(config, encoders, lookups, towers, device)
    else:
        assembled = _whole(config, encoders, lookups, towers, device)
    # Parameters are equal on all ranks, dropout is not.
    torch.manual_seed(config.train.seed * 1_000_003 + rank())
    return assembled


def _sharded(config: Config, encoders: Encoders, lookups: Lookups, towers: Towers, device: torch.device) -> Assembled:
    if world_size() > 1:
        synchronise_batch_norms(towers)
    model = Mail(*build_tables(config.schema_, lookups, encoders.num_rows, torch.device("meta")), towers)
    all_sharders = sharders(config.train.tables, config.train.betas, device)
    with phase("planning"):
        plan = plan_sharding(
            model,
            config.sharding,
            all_sharders,
            num_rows={table: rows for table, (rows, _) in table_sizes(config.schema_, lookups, encoders.num_rows).items()},
            batch_size=config.train.batch_size,
            device=device,
            local_world_size=local_world_size(),
        )
    with phase("sharding the tables"):
        sharded = shard(model, plan, all_sharders, device)
    initialise_tables(sharded, table_keys(config, lookups, encoders), config.schema_, config.train.seed)
    optimizer = build_optimizer(sharded, config.train, zero_shot_scale=_scale(config), fused=sharded.fused_optimizer)
    return Assembled(sharded, optimizer, TrainPipelineSparseDist(sharded, optimizer, device), lookups, device, plan)


def _whole(config: Config, encoders: Encoders, lookups: Lookups, towers: Towers, device: torch.device) -> Assembled:
    if world_size() > 1:
        raise ValueError(f"sharding.enabled=false keeps whole tables in one process, and this job has {world_size()}; start one, or shard")
    model = Mail(*build_tables(config.schema_, lookups, encoders.num_rows, device), towers.to(device))
    initialise_tables(model, table_keys(config, lookups, encoders), config.schema_, config.train.seed)
    optimizer = build_optimizer(model, config.train, zero_shot_scale=_scale(config), fused=None)
    return Assembled(model, optimizer, WholePipeline(model, optimizer, device), lookups, device, None)


def table_keys(config: Config, lookups: Lookups, encoders: Encoders) -> dict[str, str]:
    """State-dict key -> table name, for every table."""
    pooled = set(lookups.pooled.values())
    return {
        (f"pooled_tables.embedding_bags.{name}.weight" if name in pooled else f"unpooled_tables.embeddings.{name}.weight"): name
        for name in table_sizes(config.schema_, lookups, encoders.num_rows)
    }


def describe_plan(plan: ShardingPlan) -> str:
    """The plan as JSON: table -> sharding type, kernel, ranks, and each shard's offsets, sizes and place."""
    tables: dict[str, Any] = {}
    for module_plan in plan.plan.values():
        for name, parameter in module_plan.items():
            spec = parameter.sharding_spec
            shards = [
                {"offsets": shard.shard_offsets, "sizes": shard.shard_sizes, "placement": str(shard.placement)}
                for shard in getattr(spec, "shards", [])
            ]
            tables[name] = {
                "sharding_type": parameter.sharding_type,
                "compute_kernel": parameter.compute_kernel,
                "ranks": parameter.ranks,
                "shards": shards,
            }
    return json.dumps(tables, indent=1) + "\n"


def _scale(config: Config) -> float:
    return config.model.zero_shot.learning_rate_scale if config.model.zero_shot else 1.0

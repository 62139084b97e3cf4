"""From a configuration to a model that can train: the one place where the parts are put together."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingPlan

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.schema.feature_tables import FeatureTables, plan_feature_tables
from mail_torchrec.distributed.batch_norm import synchronise_batch_norms
from mail_torchrec.distributed.collectives import rank, world_size
from mail_torchrec.distributed.process_group import local_world_size
from mail_torchrec.embeddings.initial_weights import initialise_tables
from mail_torchrec.embeddings.plan_file import plan_text
from mail_torchrec.embeddings.planner import Workload
from mail_torchrec.embeddings.sharding import plan_sharding, shard, sharders
from mail_torchrec.embeddings.tables import build_tables, mean_lengths, table_sizes
from mail_torchrec.model.mail import Mail, Towers
from mail_torchrec.towers.registry import needs_first_order, needs_match
from mail_torchrec.train.dense_cost import dense_cost, num_negatives
from mail_torchrec.train.host_memory import keep_freed_memory
from mail_torchrec.train.optimizers import build_optimizer
from mail_torchrec.train.precision import tower_dtype
from mail_torchrec.utils.spans import span


class Pipeline(Protocol):
    """What drives a model over batches: TorchRec's, or ours for whole tables."""

    def progress(self, batches: Iterator[Any]) -> Any:
        """One step; its outputs. Raises StopIteration when there is no batch left."""


class WholePipeline:
    """One step after another: whole tables have no communication to hide."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
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
    feature_tables: FeatureTables
    device: torch.device
    plan: ShardingPlan | None
    """None where the tables are not sharded."""
    plan_file: str = "{}\n"
    """The plan as text, see ``embeddings/plan_file.py``."""

    def is_pipelined(self) -> bool:
        """Whether TorchRec's pipeline took both table collections in, which it leaves out without a word where it cannot."""
        return self.plan is None or len(self.pipeline._pipelined_modules) == 2  # type: ignore[attr-defined]


def feature_tables_of(config: Config) -> FeatureTables:
    """The lookups that a configuration's tower asks for.

    Raises:
        ValueError: the tower or its options do not fit, or the schema leaves no room for them.
    """
    tower = config.model.tower, config.model.tower_options
    return plan_feature_tables(
        config.schema_, needs_match=needs_match(*tower), needs_first_order=needs_first_order(*tower)
    )


def assemble(
    config: Config, encoders: Encoders, device: torch.device, plan: Path | None = None
) -> Assembled:
    """Meta tables -> towers -> plan -> shard -> initial weights -> optimizers -> pipeline.

    Args:
        config: everything but the data.
        encoders: what the training data taught.
        device: this rank's.
        plan: a plan file to shard by; None plans anew.

    Raises:
        ValueError: a tower, an optimizer or a sharding constraint that cannot be had, or a plan
            made for another job; see there.
    """
    feature_tables = feature_tables_of(config)
    keep_freed_memory()
    torch.manual_seed(config.train.seed)
    towers = Towers(
        config.model,
        config.schema_,
        feature_tables,
        encoders.num_rows,
        tower_dtype(config.train, device),
    )
    if config.train.compile:
        torch._dynamo.config.optimize_ddp = (
            False  # it would cut the towers at gradient buckets, of which they fill one or two
        )
        towers.compile_parts()
    if config.sharding.enabled:
        assembled = _sharded(config, encoders, feature_tables, towers, device, plan)
    elif plan is not None:
        raise ValueError(
            f"--plan {plan}: sharding.enabled=false keeps whole tables, which need no plan; leave "
            "one of the two out"
        )
    else:
        assembled = _whole(config, encoders, feature_tables, towers, device)
    # Parameters are equal on all ranks, dropout is not.
    torch.manual_seed(config.train.seed * 1_000_003 + rank())
    return assembled


def workload_of(
    config: Config, feature_tables: FeatureTables, num_rows: dict[str, int]
) -> Workload:
    """What a step asks of the tables, as the planner sees it."""
    batch_size = config.train.batch_size
    lengths = mean_lengths(
        config.schema_,
        feature_tables,
        config.sharding.lengths,
        batch_size=batch_size,
        num_negatives=num_negatives(config),
    )
    return Workload(
        table_sizes(config.schema_, feature_tables, num_rows),
        lengths,
        batch_size,
        config.train.tables.name,
    )


def _sharded(
    config: Config,
    encoders: Encoders,
    feature_tables: FeatureTables,
    towers: Towers,
    device: torch.device,
    saved: Path | None,
) -> Assembled:
    if world_size() > 1:
        synchronise_batch_norms(towers)
    model = Mail(
        *build_tables(config.schema_, feature_tables, encoders.num_rows, torch.device("meta")),
        towers,
    )
    all_sharders = sharders(config.train.tables, config.train.betas, device)
    with span("planning"):
        plan, made_for = plan_sharding(
            model,
            config.sharding,
            all_sharders,
            workload=workload_of(config, feature_tables, encoders.num_rows),
            device=device,
            local_world_size=local_world_size(),
            dense_bytes=_dense_bytes(config, encoders, feature_tables, device)
            if rank() == 0 and saved is None
            else 0,
            saved=saved,
        )
    with span("sharding the tables"):
        sharded = shard(model, plan, all_sharders, device)
    initialise_tables(
        sharded, table_keys(config, feature_tables, encoders), config.schema_, config.train.seed
    )
    optimizer = build_optimizer(
        sharded, config.train, zero_shot_scale=_scale(config), fused=sharded.fused_optimizer
    )
    return Assembled(
        sharded,
        optimizer,
        TrainPipelineSparseDist(sharded, optimizer, device),
        feature_tables,
        device,
        plan,
        plan_text(plan, made_for),
    )


def _dense_bytes(
    config: Config, encoders: Encoders, feature_tables: FeatureTables, device: torch.device
) -> int:
    """What the towers take of a GPU; a host's memory has room for them in its reserved share."""
    if device.type == "cpu":
        return 0
    return int(
        sum(
            dense_cost(config, feature_tables, encoders.num_rows)
            .memory(config.train.batch_size, world_size())
            .values()
        )
    )


def _whole(
    config: Config,
    encoders: Encoders,
    feature_tables: FeatureTables,
    towers: Towers,
    device: torch.device,
) -> Assembled:
    if world_size() > 1:
        raise ValueError(
            "sharding.enabled=false keeps whole tables in one process, and this job has "
            f"{world_size()}; start one, or shard"
        )
    model = Mail(
        *build_tables(config.schema_, feature_tables, encoders.num_rows, device), towers.to(device)
    )
    initialise_tables(
        model, table_keys(config, feature_tables, encoders), config.schema_, config.train.seed
    )
    optimizer = build_optimizer(model, config.train, zero_shot_scale=_scale(config), fused=None)
    return Assembled(
        model, optimizer, WholePipeline(model, optimizer, device), feature_tables, device, None
    )


def table_keys(config: Config, feature_tables: FeatureTables, encoders: Encoders) -> dict[str, str]:
    """State-dict key -> table name, for every table."""
    pooled = set(feature_tables.pooled.values())
    return {
        (
            f"pooled_tables.embedding_bags.{name}.weight"
            if name in pooled
            else f"unpooled_tables.embeddings.{name}.weight"
        ): name
        for name in table_sizes(config.schema_, feature_tables, encoders.num_rows)
    }


def _scale(config: Config) -> float:
    return config.model.zero_shot.learning_rate_scale if config.model.zero_shot else 1.0

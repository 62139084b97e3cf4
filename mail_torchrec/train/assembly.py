"""Assembly of a trainable model: towers, tables, sharding plan, optimizers and step pipeline."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torchrec.distributed.types import ShardingPlan

from mail_torchrec.config import Config
from mail_torchrec.data.content.table_vectors import open_table_vectors
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.schema.feature_tables import (
    FeatureTables,
    build_feature_tables,
    output_table,
)
from mail_torchrec.distributed.batch_norm import convert_batch_norms
from mail_torchrec.distributed.collectives import rank, world_size
from mail_torchrec.distributed.process_group import local_world_size
from mail_torchrec.embeddings.initial_weights import initialise_tables, overwrite_rows
from mail_torchrec.embeddings.plan_file import plan_text
from mail_torchrec.embeddings.sharding import build_sharders, plan_sharding, shard
from mail_torchrec.embeddings.tables import build_tables, collection_key, table_sizes
from mail_torchrec.embeddings.touched.lookups import record_lookups
from mail_torchrec.embeddings.touched.rows import TouchedRows
from mail_torchrec.model.mail import Mail, Towers
from mail_torchrec.model.precision import set_matmul_precision, tower_dtype
from mail_torchrec.optim.building import build_optimizer_groups
from mail_torchrec.optim.freezing import (
    freeze_parameters,
    freeze_sharded_tables,
    frozen_modules,
)
from mail_torchrec.optim.groups import OptimizerGroups
from mail_torchrec.towers.registry import needs_first_order, needs_match
from mail_torchrec.train.cost.dense_cost import build_workload, dense_cost
from mail_torchrec.train.steps import StepPipeline, UnshardedPipeline, sharded_pipeline
from mail_torchrec.utils.host_memory import keep_freed_memory
from mail_torchrec.utils.spans import span


@dataclass
class AssembledModel:
    """A model on its ranks, with its optimizers and the pipeline that runs its steps."""

    model: nn.Module
    optimizer: OptimizerGroups
    pipeline: StepPipeline
    feature_tables: FeatureTables
    device: torch.device
    plan: ShardingPlan | None
    """None where the tables are not sharded."""
    plan_file: str = "{}\n"
    """The plan as text, see ``embeddings/plan_file.py``."""
    frozen: list[nn.Module] = field(default_factory=list)
    """Modules that are not trained, and stay in evaluation mode."""
    touched: TouchedRows | None = None
    """Rows that training touches; None where they are not recorded."""

    def train_mode(self) -> None:
        """Puts the model in training mode, except what is frozen."""
        self.model.train()
        for module in self.frozen:
            module.eval()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Puts the model in evaluation mode, with averaged weights where there are any.

        Behind it the model is in training mode, with the weights that are trained.
        """
        averages = self.optimizer.averages
        with nullcontext() if averages is None else averages.applied():
            self.model.eval()
            try:
                yield
            finally:
                self.train_mode()


@dataclass(frozen=True)
class _AssemblyInputs:
    """Inputs shared by the sharded and the unsharded assembly."""

    config: Config
    encoders: Encoders
    feature_tables: FeatureTables
    towers: Towers
    device: torch.device
    reads_vectors: bool
    """Tables with `init_from` begin with its vectors, not at random."""

    @property
    def num_rows(self) -> dict[str, int]:
        """Table -> rows."""
        return self.encoders.num_rows

    def build_model(self, table_device: torch.device) -> Mail:
        """Builds the model with tables on a device; ``meta`` for tables that will be sharded."""
        tables = build_tables(self.config.schema_, self.feature_tables, self.num_rows, table_device)
        return Mail(*tables, self.towers)

    def initialise_tables(self, model: nn.Module) -> None:
        """Draws the initial weights of all tables, and reads those that begin with vectors."""
        keys = table_keys(self.config, self.feature_tables, self.encoders)
        initialise_tables(model, keys, self.config.schema_, self.config.train.seed)
        if self.reads_vectors:
            of_ids, path = self.encoders.tables, self.config.data.path
            overwrite_rows(model, keys, open_table_vectors(self.config.schema_, of_ids, path))

    def freeze(self, model: Mail) -> frozenset[str]:
        """Freezes parameters of the model before its tables are sharded; returns their names."""
        keys = table_keys(self.config, self.feature_tables, self.encoders)
        schema_tables = self.config.schema_.table_names
        of_output = {output_table(name): name for name in schema_tables}
        tables = {
            key: table if table in schema_tables else of_output[table]
            for key, table in keys.items()
        }
        return freeze_parameters(model, self.config.train.freeze, tables)

    @property
    def zero_shot_scale(self) -> float:
        """Factor of the zero-shot tower's learning rate."""
        zero_shot = self.config.model.zero_shot
        return zero_shot.learning_rate_scale if zero_shot else 1.0


def config_feature_tables(config: Config) -> FeatureTables:
    """Assigns feature keys to tables as the configured tower needs them.

    Raises:
        ValueError: the tower or its options do not fit, or the schema leaves no room for them.
    """
    tower = config.model.tower, config.model.tower_options
    return build_feature_tables(
        config.schema_, needs_match=needs_match(*tower), needs_first_order=needs_first_order(*tower)
    )


def assemble(
    config: Config,
    encoders: Encoders,
    device: torch.device,
    plan: Path | None = None,
    *,
    reads_vectors: bool = False,
    records_touched: bool = False,
) -> AssembledModel:
    """Assembles a model that can train, on every rank.

    Args:
        config: of the run.
        encoders: fitted on the training data.
        device: this rank's.
        plan: a plan file to shard by; None plans anew.
        reads_vectors: read the vectors that tables begin with (`init_from`); False where weights
            are loaded anyway.
        records_touched: record which rows training touches.

    Raises:
        ValueError: a tower, an optimizer or a sharding constraint that cannot be had, or a plan
            made for another job; see there.
    """
    if plan is not None and not config.sharding.enabled:
        raise ValueError(
            f"--plan {plan}: sharding.enabled=false keeps whole tables, which need no plan; leave "
            "one of the two out"
        )
    config = config.with_dims(encoders.num_rows)
    feature_tables = config_feature_tables(config)
    keep_freed_memory()
    torch.manual_seed(config.train.seed)
    towers = _build_towers(config, feature_tables, encoders, device)
    convert_batch_norms(towers, world_size())
    inputs = _AssemblyInputs(config, encoders, feature_tables, towers, device, reads_vectors)
    assembled = (
        _assemble_sharded(inputs, plan) if config.sharding.enabled else _assemble_unsharded(inputs)
    )
    if records_touched:
        keys = table_keys(config, feature_tables, encoders)
        assembled.touched = record_lookups(assembled.model, keys, device)
    assembled.train_mode()
    # Parameters are equal on all ranks, dropout is not.
    torch.manual_seed(config.train.seed * 1_000_003 + rank())
    return assembled


def _build_towers(
    config: Config, feature_tables: FeatureTables, encoders: Encoders, device: torch.device
) -> Towers:
    """Builds the towers, compiled where the configuration asks for it."""
    dtype = tower_dtype(config.train.precision, device)
    set_matmul_precision(config.train.precision, device)
    of_run = config.model, config.schema_, feature_tables, encoders.num_rows
    towers = Towers(*of_run, dtype, config.data.negatives_kept, encoders.vector_dims)
    if config.train.compile:
        # It would cut the towers at gradient buckets, of which they fill one or two.
        torch._dynamo.config.optimize_ddp = False
        has_few_shapes = config.data.shape_buckets is not None
        towers.compile_parts(device, config.train.compile_mode, has_few_shapes=has_few_shapes)
    return towers


def table_keys(config: Config, feature_tables: FeatureTables, encoders: Encoders) -> dict[str, str]:
    """Returns the table's name of every state-dict key that is a table."""
    pooled = set(feature_tables.pooled.values())
    return {
        (
            f"pooled_tables.embedding_bags.{collection_key(name)}.weight"
            if name in pooled
            else f"unpooled_tables.embeddings.{collection_key(name)}.weight"
        ): name
        for name in table_sizes(config.schema_, feature_tables, encoders.num_rows)
    }


def _assemble_sharded(inputs: _AssemblyInputs, saved_plan: Path | None) -> AssembledModel:
    """Plans, shards and initialises the tables; wraps the towers in DistributedDataParallel."""
    config, device = inputs.config, inputs.device
    model = inputs.build_model(torch.device("meta"))
    frozen = inputs.freeze(model)
    of_run = config.sharding, config.train.batch_size
    sharders = build_sharders(config.train.tables, config.train.betas, device, *of_run)
    with span("planning"):
        plan, plan_context = plan_sharding(
            model,
            config.sharding,
            sharders,
            workload=build_workload(config, inputs.feature_tables, inputs.num_rows),
            device=device,
            local_world_size=local_world_size(),
            dense_bytes=_dense_bytes(inputs) if rank() == 0 and saved_plan is None else 0,
            saved=saved_plan,
        )
    with span("sharding the tables"):
        accumulates = config.train.accumulate > 1
        in_bfloat16 = config.sharding.averages_in_bfloat16
        options = {"accumulates": accumulates, "dense_in_bfloat16": in_bfloat16}
        replicas = config.sharding.replicas
        sharded = shard(model, plan, sharders, device, replicas=replicas, **options)
    freeze_sharded_tables(sharded)
    inputs.initialise_tables(sharded)
    optimizer = build_optimizer_groups(
        sharded,
        config.train,
        zero_shot_scale=inputs.zero_shot_scale,
        fused=sharded.fused_optimizer,
        frozen=frozen,
    )
    pipeline = sharded_pipeline(sharded, optimizer, device, prefetches=config.sharding.prefetch)
    return AssembledModel(
        sharded,
        optimizer,
        pipeline,
        inputs.feature_tables,
        device,
        plan,
        plan_text(plan, plan_context),
        frozen_modules(model, config.train.freeze),
    )


def _dense_bytes(inputs: _AssemblyInputs) -> int:
    """Estimates the GPU memory of the towers; a host reserves room for them anyway."""
    if inputs.device.type == "cpu":
        return 0
    of_data = inputs.feature_tables, inputs.num_rows, inputs.encoders.vector_dims
    cost = dense_cost(inputs.config, *of_data, inputs.device.type)
    return int(sum(cost.memory(inputs.config.train.batch_size, world_size()).values()))


def _assemble_unsharded(inputs: _AssemblyInputs) -> AssembledModel:
    """Initialises whole tables in this process, as plain modules."""
    if world_size() > 1:
        raise ValueError(
            "sharding.enabled=false keeps whole tables in one process, and this job has "
            f"{world_size()}; start one, or shard"
        )
    inputs.towers.to(inputs.device)
    model = inputs.build_model(inputs.device)
    inputs.initialise_tables(model)
    frozen = inputs.freeze(model)
    train = inputs.config.train
    optimizer = build_optimizer_groups(
        model, train, zero_shot_scale=inputs.zero_shot_scale, fused=None, frozen=frozen
    )
    return AssembledModel(
        model,
        optimizer,
        UnshardedPipeline(model, optimizer, inputs.device),
        inputs.feature_tables,
        inputs.device,
        plan=None,
        frozen=frozen_modules(model, train.freeze),
    )

"""Enumeration of every table's sharding options, with TorchRec's estimates of memory and time.

TorchRec's enumerator estimates every shard separately, which takes minutes for 200 tables on 1,024
ranks. Shards of one size cost the same, so that each size is estimated once here. The state of the
fused optimizer is added: TorchRec reads its size from the weights' optimizer classes, which are
absent if the sharders apply the optimizer.
"""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from torch import nn
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner import types as torchrec_planner
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator, get_partition_by_type
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.types import ModuleSharder, PipelineType

from mail_torchrec.embeddings.settings import OptimizerName
from mail_torchrec.embeddings.sharding_options import FloatArray, PartitionBy, ShardingOption
from mail_torchrec.embeddings.storage import optimizer_state_bytes, weight_bytes
from mail_torchrec.embeddings.tables import table_of_key

_SIMPLEST_FIRST = (
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
)


def enumerate_sharding_options(
    tables: nn.Module,
    sharders: Sequence[ModuleSharder[nn.Module]],
    constraints: dict[str, ParameterConstraints],
    topology: torchrec_planner.Topology,
    batch_size: int,
    optimizer: OptimizerName,
    *,
    prefetches: bool = False,
    stages_checkpoints: bool = False,
) -> dict[str, list[ShardingOption]]:
    """Enumerates the sharding options of every table, the simplest first.

    Args:
        tables: holds the collections, on the meta device.
        sharders: of both kinds of collection.
        constraints: of every table, by its key in the collections.
        topology: the ranks.
        batch_size: rows a rank.
        optimizer: of the tables.
        prefetches: whether rows are prefetched into caches, which takes one more batch of inputs.
        stages_checkpoints: whether the host's memory holds a copy of weights and optimizer state,
            from which checkpoints are written.

    Returns:
        The options by table name.

    Raises:
        ValueError: the constraints leave a table no option.
    """
    estimators = [
        EmbeddingPerfEstimator(topology, constraints),
        _StateEstimator(
            topology, constraints, optimizer, prefetches=prefetches, stages=stages_checkpoints
        ),
    ]
    enumerator = _ShardSizeEnumerator(topology, batch_size, constraints, estimators)
    try:
        options = enumerator.enumerate(tables, list(sharders))
    except RuntimeError as error:  # TorchRec raises it if a table has no option
        raise ValueError(
            f"no sharding option is left for a table: {str(error).partition(' To debug')[0]}"
        ) from error
    by_table: dict[str, list[ShardingOption]] = {}
    for option in options:
        all_shards = enumerator.all_shards[id(option)]
        by_table.setdefault(table_of_key(option.name), []).append(_convert(option, all_shards))
    # TorchRec's order is that of a set. Sorting makes the simpler of two equal options win.
    return {table: sorted(found, key=_simplicity) for table, found in by_table.items()}


def _simplicity(option: ShardingOption) -> tuple[int, str]:
    return _SIMPLEST_FIRST.index(option.sharding_type), option.compute_kernel


class _ShardSizeEnumerator(EmbeddingEnumerator):
    """Estimates one shard of each size; ``all_shards`` keeps the shards of every option."""

    def __init__(
        self,
        topology: torchrec_planner.Topology,
        batch_size: int,
        constraints: dict[str, ParameterConstraints],
        estimators: list[Any],
    ) -> None:
        super().__init__(topology, batch_size, constraints, estimators)
        self.all_shards: dict[int, list[Any]] = {}

    def populate_estimates(self, sharding_options: list[torchrec_planner.ShardingOption]) -> None:
        for option in sharding_options:
            self.all_shards[id(option)] = option.shards
            option.shards = list({tuple(shard.size): shard for shard in option.shards}.values())
        super().populate_estimates(sharding_options)


class _StateEstimator(EmbeddingStorageEstimator):
    """Adds the fused optimizer's state, and copies of both for checkpoints, to TorchRec's bytes."""

    def __init__(
        self,
        topology: torchrec_planner.Topology,
        constraints: dict[str, ParameterConstraints],
        optimizer: OptimizerName,
        *,
        prefetches: bool,
        stages: bool,
    ) -> None:
        prefetching = PipelineType.TRAIN_PREFETCH_SPARSE_DIST
        # Outputs count too: the towers keep them for their backward pass.
        super().__init__(
            topology,
            constraints,
            pipeline_type=prefetching if prefetches else PipelineType.TRAIN_SPARSE_DIST,
            run_embedding_at_peak_memory=True,
        )
        self._device, self._optimizer = topology.compute_device, optimizer
        self._stages = stages

    def estimate(
        self, sharding_options: list[torchrec_planner.ShardingOption], *args: Any, **kwargs: Any
    ) -> None:
        super().estimate(sharding_options, *args, **kwargs)
        for option in sharding_options:
            on_gpu = self._device == "cuda" and option.compute_kernel == "fused"
            for shard in option.shards:
                state = optimizer_state_bytes(self._optimizer, *shard.size)
                if on_gpu:
                    shard.storage.hbm += state
                else:  # UVM: the state lies beside the weights in host memory, cached or not
                    shard.storage.ddr += state
                if self._stages:
                    shard.storage.ddr += state + weight_bytes(*shard.size)


def _convert(option: torchrec_planner.ShardingOption, shards: list[Any]) -> ShardingOption:
    """Converts an option of TorchRec, in which one shard of each size was estimated."""
    estimated = {tuple(shard.size): shard for shard in option.shards}
    same_size = [estimated[tuple(shard.size)] for shard in shards]
    storages, perfs = [shard.storage for shard in same_size], [shard.perf for shard in same_size]
    partition_by = get_partition_by_type(option.sharding_type)
    assert partition_by in get_args(PartitionBy)
    return ShardingOption(
        table=table_of_key(option.name),
        module_path=option.path,
        sharding_type=option.sharding_type,
        compute_kernel=option.compute_kernel,
        partition_by=partition_by,
        sizes_S2=np.asarray([shard.size for shard in shards], np.int64),
        offsets_S2=np.asarray([shard.offset for shard in shards], np.int64),
        memory_S={
            "hbm": _floats([storage.hbm for storage in storages]),
            "host": _floats([storage.ddr for storage in storages]),
        },
        lookup_S=_floats(
            [perf.fwd_compute + perf.bwd_compute + perf.prefetch_compute for perf in perfs]
        ),
        comms_S=_floats(
            [perf.fwd_comms + perf.bwd_comms + perf.input_dist_comms for perf in perfs]
        ),
    )


def _floats(values: list[float]) -> FloatArray:
    return np.asarray(values, np.float64)

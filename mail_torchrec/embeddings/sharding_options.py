"""What could be done with each table: its sharding options, their memory and their time a rank, by TorchRec's estimators.

TorchRec's enumerator estimates every shard for itself, which takes minutes for 200 tables on 1,024
ranks. Shards of one size cost the same, so that here each size is estimated once. The fused
optimizer's state, which TorchRec reads off the weights and so does not see where the sharders bring
the optimizer, is added.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator, get_partition_by_type
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.planner.types import ShardingOption, Topology
from torchrec.distributed.types import ModuleSharder, PipelineType

Memory = Literal["hbm", "host", "ssd"]
MEMORIES: tuple[Memory, ...] = ("hbm", "host", "ssd")
OptimizerName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "partial_rowwise_adam"]
Floats = NDArray[np.float64]

_WEIGHT_BYTES = 4
_STATE: dict[OptimizerName, tuple[int, int]] = {
    "sgd": (0, 0),
    "rowwise_adagrad": (0, 1),
    "adagrad": (1, 0),
    "partial_rowwise_adam": (1, 1),
    "adam": (2, 0),
}
"""Optimizer -> its float32 values for each weight, and for each row."""


_SIMPLEST_FIRST = (
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
)


def state_bytes(optimizer: OptimizerName, rows: int, columns: int) -> int:
    """Bytes of a fused optimizer's state for so many rows and columns."""
    a_weight, a_row = _STATE[optimizer]
    return 4 * rows * (a_weight * columns + a_row)


def weight_bytes(rows: int, columns: int) -> int:
    """Bytes of so many float32 rows."""
    return _WEIGHT_BYTES * rows * columns


@dataclass(frozen=True, eq=False)
class Choice:
    """One way to lay out a table; arrays have an entry a shard ``S``."""

    table: str
    module: str
    """The collection that holds it."""
    sharding_type: str
    kernel: str
    placed: str
    """What takes shards: ``device`` (any rank a shard), ``host`` (all on one), ``multi_host``
    (groups on hosts), ``uniform`` (rank i takes shard i)."""
    sizes_S2: NDArray[np.int64]
    """Rows and columns."""
    offsets_S2: NDArray[np.int64]
    memory_S: dict[Memory, Floats]
    """Bytes with the optimizer's state, inputs and outputs."""
    lookup_S: Floats
    """Milliseconds a step in the tables' kernels, forward and backward."""
    comms_S: Floats
    """Milliseconds a step in the collectives of inputs, outputs and gradients."""

    @property
    def time_S(self) -> Floats:
        """Milliseconds a step."""
        return self.lookup_S + self.comms_S


def enumerate_choices(
    tables: nn.Module,
    sharders: Sequence[ModuleSharder[nn.Module]],
    constraints: dict[str, ParameterConstraints],
    topology: Topology,
    batch_size: int,
    optimizer: OptimizerName,
) -> dict[str, list[Choice]]:
    """Table -> its choices.

    Args:
        tables: holds the collections, on the meta device.
        sharders: of both kinds of collection.
        constraints: of every table.
        topology: the ranks.
        batch_size: rows a rank.
        optimizer: of the tables.

    Raises:
        ValueError: the constraints leave a table no choice.
    """
    estimators = [
        EmbeddingPerfEstimator(topology, constraints),
        _StorageWithState(topology, constraints, optimizer),
    ]
    enumerator = _OncePerSize(topology, batch_size, constraints, estimators)
    try:
        options = enumerator.enumerate(tables, list(sharders))
    except RuntimeError as error:  # the one that TorchRec raises where nothing is left
        raise ValueError(
            f"no choice is left for a table: {str(error).partition(' To debug')[0]}"
        ) from error
    choices: dict[str, list[Choice]] = {}
    for option in options:
        choices.setdefault(option.name, []).append(
            _choice(option, enumerator.all_shards[id(option)])
        )
    # TorchRec's order is that of a set; equals are decided for the simpler.
    return {table: sorted(found, key=_simplicity) for table, found in choices.items()}


def _simplicity(choice: Choice) -> tuple[int, str]:
    return _SIMPLEST_FIRST.index(choice.sharding_type), choice.kernel


class _OncePerSize(EmbeddingEnumerator):
    """Keeps one shard of each size in the options while TorchRec estimates (and copies) them."""

    def __init__(
        self,
        topology: Topology,
        batch_size: int,
        constraints: dict[str, ParameterConstraints],
        estimators: list[Any],
    ) -> None:
        super().__init__(topology, batch_size, constraints, estimators)
        self.all_shards: dict[int, list[Any]] = {}

    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        for option in sharding_options:
            self.all_shards[id(option)] = option.shards
            option.shards = list({tuple(shard.size): shard for shard in option.shards}.values())
        super().populate_estimates(sharding_options)


class _StorageWithState(EmbeddingStorageEstimator):
    """Adds the fused optimizer's state to TorchRec's weights, caches, inputs and outputs."""

    def __init__(
        self,
        topology: Topology,
        constraints: dict[str, ParameterConstraints],
        optimizer: OptimizerName,
    ) -> None:
        # Outputs count too: ours are what the towers keep for their backward pass.
        super().__init__(
            topology,
            constraints,
            pipeline_type=PipelineType.TRAIN_SPARSE_DIST,
            run_embedding_at_peak_memory=True,
        )
        self._device, self._optimizer = topology.compute_device, optimizer

    def estimate(self, sharding_options: list[ShardingOption], *args: Any, **kwargs: Any) -> None:
        super().estimate(sharding_options, *args, **kwargs)
        for option in sharding_options:
            on_gpu = self._device == "cuda" and option.compute_kernel in ("fused", "key_value")
            for shard in option.shards:
                state = state_bytes(self._optimizer, *shard.size)
                if on_gpu:
                    shard.storage.hbm += state
                else:  # UVM: the state lies with the weights, cached or not
                    shard.storage.ddr += state


def _choice(option: ShardingOption, shards: list[Any]) -> Choice:
    estimated = {tuple(shard.size): shard for shard in option.shards}
    same = [estimated[tuple(shard.size)] for shard in shards]
    perfs = [shard.perf for shard in same]

    def of(values: list[float]) -> Floats:
        return np.asarray(values, np.float64)

    return Choice(
        table=option.name,
        module=option.path,
        sharding_type=option.sharding_type,
        kernel=option.compute_kernel,
        placed=get_partition_by_type(option.sharding_type),
        sizes_S2=np.asarray([shard.size for shard in shards], np.int64),
        offsets_S2=np.asarray([shard.offset for shard in shards], np.int64),
        memory_S={
            "hbm": of([shard.storage.hbm for shard in same]),
            "host": of([shard.storage.ddr for shard in same]),
            "ssd": of([getattr(shard.storage, "ssd", 0) for shard in same]),
        },
        lookup_S=of(
            [perf.fwd_compute + perf.bwd_compute + perf.prefetch_compute for perf in perfs]
        ),
        comms_S=of([perf.fwd_comms + perf.bwd_comms + perf.input_dist_comms for perf in perfs]),
    )


def describe(choice: Choice) -> str:
    """A choice in two words, the kernel only where it is not the usual one."""
    return (
        choice.sharding_type
        if choice.kernel == "fused"
        else f"{choice.sharding_type}, {choice.kernel}"
    )


def num_bytes(total: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(total) < 1024 or unit == "TiB":
            return (
                f"{total:.0f} {unit}" if unit == "B" or abs(total) >= 100 else f"{total:.1f} {unit}"
            )
        total /= 1024
    raise AssertionError(math.inf)

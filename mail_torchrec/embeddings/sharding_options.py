"""Sharding options of a table: one way to shard it, with the memory and time of every shard.

Shape letters: ``S`` shards of one option.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.embeddings.storage import MemoryKind

FloatArray = NDArray[np.float64]
PartitionBy = Literal["device", "host", "multi_host", "uniform"]


@dataclass(frozen=True, eq=False)
class ShardingOption:
    """One way to shard one table, after ``torchrec.distributed.planner.types.ShardingOption``."""

    table: str
    """Name of the table."""
    module_path: str
    """Path of the collection that holds the table."""
    sharding_type: str
    """TorchRec's name of the cut, such as ``row_wise``."""
    compute_kernel: str
    """TorchRec's name of the kernel, which says the memory that the table lies in."""
    partition_by: PartitionBy
    """Unit that shards are assigned to: ``device`` (any rank for each shard), ``host`` (all shards
    on the ranks of one host), ``multi_host`` (one group of shards for each host), ``uniform``
    (shard i on rank i)."""
    sizes_S2: NDArray[np.int64]
    """Rows and columns of each shard."""
    offsets_S2: NDArray[np.int64]
    """First row and first column of each shard."""
    memory_S: dict[MemoryKind, FloatArray]
    """Bytes of each shard, the optimizer's state, inputs and outputs included."""
    lookup_S: FloatArray
    """Milliseconds a step in the table's kernels, forward and backward."""
    comms_S: FloatArray
    """Milliseconds a step in the collectives of inputs, outputs and gradients."""

    @property
    def time_S(self) -> FloatArray:
        """Milliseconds a step of each shard."""
        return self.lookup_S + self.comms_S

    def describe(self) -> str:
        """Returns the sharding type, and the compute kernel unless it is ``fused``."""
        if self.compute_kernel == "fused":
            return self.sharding_type
        return f"{self.sharding_type}, {self.compute_kernel}"

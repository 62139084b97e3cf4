"""Times of shards by measured rates: kernels by ids and columns, collectives by bytes.

Shape letters: ``S`` shards of one option, ``R`` ranks.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.embeddings.rates.machine_rates import MachineRates

FloatArray = NDArray[np.float64]

POOLED_MODULE = "pooled_tables"
"""Path of the collection whose vectors are pooled."""
_ID_BYTES = 8
# One exchange a step tells all collections how many ids come.
_SPLITS_CALLS = 1
# Lengths and ids of a collection.
_INPUT_CALLS = 2
# Vectors and their gradients.
_OUTPUT_CALLS = 2
_BY_ROWS = ("row_wise", "table_row_wise", "grid_shard")


@dataclass(frozen=True)
class LookedUp:
    """Lookups of one table in a step of one rank."""

    module_path: str
    """Path of the collection that holds the table."""
    ids_a_row: float
    """Ids that a row of the batch has, over all features of the table."""
    num_features: int
    num_rows: int
    """Stored rows of the table; its ids spread over them evenly."""
    batch_size: int
    forward_bytes: int = 4
    """Bytes of a vector's value on its way between ranks."""
    backward_bytes: int = 4
    """Bytes of a gradient's value on its way."""

    @property
    def is_pooled(self) -> bool:
        """True where vectors of a list are summed before they travel."""
        return self.module_path == POOLED_MODULE


def shard_times(
    rates: MachineRates,
    optimizer: str,
    looked_up: LookedUp,
    sharding_type: str,
    sizes_S2: NDArray[np.int64],
    world_size: int,
) -> tuple[FloatArray, FloatArray]:
    """Estimates milliseconds of every shard in kernels and in collectives, without latencies.

    Args:
        rates: of the machine.
        optimizer: of the tables.
        looked_up: lookups of the table.
        sharding_type: TorchRec's name of the cut.
        sizes_S2: rows and columns of each shard.
        world_size: ranks.
    """
    of_all = world_size * looked_up.batch_size
    rows_S, columns_S = sizes_S2[:, 0].astype(float), sizes_S2[:, 1].astype(float)
    ids_S = of_all * looked_up.ids_a_row * rows_S / looked_up.num_rows
    bags = of_all * looked_up.num_features
    rate = rates.lookups_of(optimizer)
    kernel = rate.pooled if looked_up.is_pooled else rate.unpooled
    shapes = zip(ids_S, columns_S, rows_S, strict=True)
    lookup_S = [kernel.ms(ids, columns, bags, rows) for ids, columns, rows in shapes]
    sent = (world_size - 1) / world_size
    value_bytes = looked_up.forward_bytes + looked_up.backward_bytes
    travelling_S = bags if looked_up.is_pooled else ids_S
    vectors_S = travelling_S * columns_S * value_bytes * sent
    reduces = looked_up.is_pooled and sharding_type in _BY_ROWS
    link = rates.reduce_scatter if reduces else rates.all_to_all
    inputs_S = (ids_S + bags) * _ID_BYTES * sent
    comms_S = (link.ms_a_mb * vectors_S + rates.all_to_all.ms_a_mb * inputs_S) / 1e6
    return np.asarray(lookup_S), comms_S


@dataclass(frozen=True)
class PlanLatency:
    """Times of a plan that do not add up over shards.

    TorchRec looks up and exchanges the tables of one collection and one sharding type together:
    each such group takes some collectives, and a fixed time in kernels on the ranks that hold it.
    """

    rates: MachineRates
    optimizer: str
    """Fused optimizer of the tables."""

    def add(
        self,
        groups: Mapping[tuple[str, str], Collection[int]],
        lookup_R: FloatArray,
        comms_R: FloatArray,
    ) -> None:
        """Adds the latencies to the milliseconds of each rank.

        Args:
            groups: ranks that hold shards of each collection and sharding type.
            lookup_R: in kernels.
            comms_R: in collectives.
        """
        kernels = self.rates.lookups_of(self.optimizer)
        for (module_path, _), ranks in groups.items():
            kernel = kernels.pooled if module_path == POOLED_MODULE else kernels.unpooled
            lookup_R[list(ranks)] += kernel.fixed_ms
        if len(comms_R) > 1:
            calls = _SPLITS_CALLS + len(groups) * (_INPUT_CALLS + _OUTPUT_CALLS)
            comms_R += self.rates.all_to_all.latency_ms * calls
            comms_R += self.rates.steps.ms_a_group * len(groups)

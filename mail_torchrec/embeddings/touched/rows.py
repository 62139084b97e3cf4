"""Flags of the table rows that training has touched, each on the rank that owns the row.

Shapes: ``R`` rows of a table, or of this rank's part of one; ``N`` rows that are marked.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

TOUCHED = "touched."
"""Prefix of the keys of checkpoints; the table's name follows."""


class TouchedRows:
    """Rows whose weights or optimizer state may differ from those that a run began with.

    Args:
        state: ``touched.TABLE`` -> flags [R] of the table (bool), a ``ShardedTensor`` where the
            table is sharded. They are set in place; a checkpoint holds them.
        table_names: by state-dict key of the model.
        replica_group: ranks that hold copies of this one's rows; None where no other does.
    """

    def __init__(
        self,
        state: dict[str, Tensor | ShardedTensor],
        table_names: Mapping[str, str],
        replica_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.state, self.table_names = state, table_names
        self._replica_group = replica_group

    def unite_replicas(self) -> None:
        """Marks the rows that other copies of the tables have touched; every rank calls it."""
        if self._replica_group is None:
            return
        for table in self.table_names.values():
            for _, flags_R in self._parts(table):
                # No backend takes the greatest of flags.
                dist.all_reduce(flags_R.view(torch.uint8), dist.ReduceOp.MAX, self._replica_group)

    def mark(self, table: str, rows_N: NDArray[np.int64]) -> None:
        """Marks rows that something else than a lookup changes; every rank marks its own of them.

        Args:
            table: name; output tables have one of their own.
            rows_N: numbers of rows of the table.
        """
        rows = torch.from_numpy(rows_N)
        for first_row, flags_R in self._parts(table):
            inside_N = (rows >= first_row) & (rows < first_row + len(flags_R))
            flags_R[(rows[inside_N] - first_row).to(flags_R.device)] = True

    def mark_all(self, table: str) -> None:
        """Marks all rows of a table."""
        for _, flags_R in self._parts(table):
            flags_R.fill_(True)

    def _parts(self, table: str) -> Iterator[tuple[int, Tensor]]:
        """Yields first row and flags of this rank's parts of a table."""
        flags = self.state[TOUCHED + table]
        if isinstance(flags, ShardedTensor):
            for shard in flags.local_shards():
                yield shard.metadata.shard_offsets[0], shard.tensor
        else:
            yield 0, flags

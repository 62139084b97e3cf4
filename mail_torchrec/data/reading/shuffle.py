"""Shuffling of an epoch: order of the row groups, order of the rows of a chunk, random streams.

Shapes: ``R`` rows of a chunk.
"""

from dataclasses import dataclass

import numpy as np

from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.reading.partition import RowGroupSlice
from mail_torchrec.data.source import RowGroup


@dataclass(frozen=True)
class EpochShuffle:
    """Random draws of one epoch, keyed by seed, epoch, rank and step."""

    seed: int
    epoch: int
    enabled: bool
    """False: rows keep the order of the files."""
    group_by_user: bool
    """Rows of one user stay together within a chunk."""

    def row_groups(self, groups: list[RowGroup]) -> list[RowGroupSlice]:
        """Returns whole row groups in the order of the epoch."""
        if self.enabled:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(len(groups))
            groups = [groups[i] for i in order]
        return [RowGroupSlice(group, range(group.num_rows)) for group in groups]

    def permutation(self, rank: int, step: int, num_rows: int, users_R: Ints | None) -> Ints:
        """Returns the order of a chunk's rows.

        Args:
            rank: that reads them.
            step: first step of the chunk in the epoch.
            num_rows: rows of its steps: R, or R + 1 where the last row is repeated.
            users_R: user of each row; only needed where ``group_by_user``.

        Returns:
            Row numbers [num_rows].
        """
        if not self.enabled:
            return np.arange(num_rows)
        random = self.random(rank, step, stream=0)
        order = random.permutation(num_rows)
        if not self.group_by_user:
            return order
        assert users_R is not None
        users, user_indices_R = np.unique(users_R, return_inverse=True)
        users_of_order = user_indices_R[np.minimum(order, len(users_R) - 1)]
        places = random.permutation(len(users))[users_of_order]
        return order[np.argsort(places, kind="stable")]

    def random(self, rank: int, step: int, stream: int) -> np.random.Generator:
        """Returns a generator of a rank's step; stream 0 shuffles, the others draw negatives."""
        return np.random.default_rng([self.seed, self.epoch, rank, step, stream])

"""Counts of a batch's rows for the logs: unknown ids, cut lists, users.

Shapes: ``B`` rows of a batch, ``U`` deduplicated users (or rows where none are).
"""

from collections.abc import Mapping

import numpy as np

from mail_torchrec.data.ids.policy import IdEncoder, is_unknown
from mail_torchrec.data.parquet.arrow import Bools, Ints
from mail_torchrec.data.parquet.jagged import JaggedArray
from mail_torchrec.data.reading.batch_ids import BatchIds
from mail_torchrec.data.reading.chunk import Chunk
from mail_torchrec.data.reading.dedup import RowDedup
from mail_torchrec.data.schema.schema import Schema


class RowCounter:
    """Counts over the real rows of a batch.

    Args:
        schema: columns.
        encoders: of the ids, by table.
        user_side: features with one entry a user.
        group_by_user: users are deduplicated.
    """

    def __init__(
        self,
        schema: Schema,
        encoders: Mapping[str, IdEncoder],
        user_side: set[str],
        *,
        group_by_user: bool,
    ) -> None:
        self._lists, self._user_side = schema.lists, user_side
        first = {
            name: encoders[schema.table_of(name)].first_own_row
            for name in schema.scalars + schema.lists
        }
        self._first_own_rows = first
        of_scalars = [first[name] for name in schema.scalars]
        self._first_own_rows_C1 = np.array(of_scalars, np.int64).reshape(-1, 1)
        self._has_conversions = schema.conversion is not None
        self.names = [f"unknown/{name}" for name in schema.scalars + schema.lists]
        """Names of the counts, in order: unknown ids of each column, rows whose list was cut,
        conversions without a click, distinct users, and deduplicated users."""
        self.names += [f"cut/{name}" for name in schema.lists]
        if schema.conversion:
            self.names.append(f"unclicked/{schema.conversion}")
        if group_by_user:
            self.names += [f"distinct/{schema.group_key}", f"states/{schema.group_key}"]

    def __call__(
        self, rows: Chunk, is_real_B: Bools, dedup: RowDedup | None, ids: BatchIds
    ) -> Ints:
        """Counts one batch, [len(names)].

        Args:
            rows: B rows.
            is_real_B: False on rows that only fill the batch up.
            dedup: deduplicated users of the rows.
            ids: of the columns.
        """
        weights_B, weights_U = is_real_B.astype(np.int64), _user_weights(is_real_B, dedup)
        unknown_CR = is_unknown(rows.scalars_CR, self._first_own_rows_C1)
        counts = list(unknown_CR @ is_real_B.astype(np.float32))
        for name in self._lists:
            part, weights = ids[name], weights_U if name in self._user_side else weights_B
            assert isinstance(part, JaggedArray)
            unknown_V = is_unknown(part.values, self._first_own_rows[name])
            counts.append(part.count(unknown_V) @ weights)
        counts += list(weights_B @ rows.is_cut_RL)
        if self._has_conversions:
            counts.append(np.count_nonzero(rows.conversions_R & ~rows.labels_R & is_real_B))
        if dedup:
            users = rows.users_R[dedup.first_rows_U[weights_U > 0]]
            counts += [len(np.unique(users)), len(users)]
        return np.array(counts, dtype=np.int64)


def _user_weights(is_real_B: Bools, dedup: RowDedup | None) -> Ints:
    """Returns the number of real rows of each user, [U]."""
    if dedup is None:
        return is_real_B.astype(np.int64)
    num_users = len(dedup.first_rows_U)
    sums_U = np.bincount(dedup.inverse_indices_R, weights=is_real_B, minlength=num_users)
    return sums_U.astype(np.int64)

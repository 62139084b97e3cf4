"""Collation of rows to batches.

Shapes: ``B`` rows of a batch, ``R`` rows of a chunk.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from mail_torchrec.data.ids.policy import IdEncoder
from mail_torchrec.data.negatives import NegativeSampler
from mail_torchrec.data.parquet.arrow import Bools, Ints
from mail_torchrec.data.reading.batch import Batch, DedupIndices, RowSets
from mail_torchrec.data.reading.batch_ids import MatchCollator, batch_ids, keyed_jagged
from mail_torchrec.data.reading.chunk import Chunk
from mail_torchrec.data.reading.dedup import (
    USER_SIDE_GROUPS,
    RowDedup,
    dedup_keys,
    deduplicate,
)
from mail_torchrec.data.reading.row_counts import RowCounter
from mail_torchrec.data.reading.shape_buckets import ShapeBuckets
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Group, Schema


class BatchCollator:
    """Collates rows of a chunk to batches.

    Args:
        schema: columns.
        encoders: of the ids, by table.
        feature_tables: features of a batch.
        samplers: samplers of the negatives of each sequence; none outside training.
        group_by_user: deduplicate user-side features.
        buckets: sizes that numbers of a batch are rounded up to; None leaves them.
    """

    def __init__(
        self,
        schema: Schema,
        encoders: Mapping[str, IdEncoder],
        feature_tables: FeatureTables,
        samplers: Mapping[str, NegativeSampler],
        *,
        group_by_user: bool,
        buckets: ShapeBuckets | None = None,
    ) -> None:
        self._buckets = buckets
        self._schema, self._feature_tables = schema, feature_tables
        self._group_by_user = group_by_user
        self._user_side: set[str] = set()
        if group_by_user:
            self._user_side |= set(schema.names(*USER_SIDE_GROUPS))
            self._user_side |= {features.last for features in feature_tables.match.values()}
        self._match = MatchCollator(schema, feature_tables, samplers)
        self._count = RowCounter(schema, encoders, self._user_side, group_by_user=group_by_user)

    @property
    def count_names(self) -> list[str]:
        """Names of the entries of ``Batch.counts``."""
        return self._count.names

    def dedup_keys(self, chunk: Chunk) -> Ints:
        """Returns keys [R] that are equal for rows to be deduplicated, or else all distinct."""
        if not self._group_by_user:
            return np.arange(len(chunk))
        schema = self._schema
        # Attributes are the first of the numeric columns.
        num_user_numeric = len(schema.numeric(Group.ATTRIBUTE))
        vectors = [chunk.vectors[name] for name in schema.vectors(Group.ATTRIBUTE)]
        scalars = [i for i, name in enumerate(schema.scalars) if name in self._user_side]
        return dedup_keys(
            chunk.users_R,
            [
                chunk.is_cold_R,
                chunk.numeric_RN[:, :num_user_numeric],
                *chunk.scalars_CR[scalars],
                *vectors,
            ],
            [jagged for name, jagged in chunk.lists.items() if name in self._user_side],
        )

    def __call__(
        self,
        rows: Chunk,
        dedup_keys_B: Ints,
        is_real_B: Bools,
        random: Callable[[int], np.random.Generator],
    ) -> Batch:
        """Collates one batch.

        Args:
            rows: B rows.
            dedup_keys_B: of :meth:`dedup_keys`.
            is_real_B: False on rows that only fill the batch up.
            random: returns the generator of a stream (from 1).
        """
        dedup = deduplicate(dedup_keys_B) if self._group_by_user else None
        ids = batch_ids(rows, self._schema.scalars, self._user_side, dedup)
        counts = self._count(rows, is_real_B, dedup, ids)
        match = self._match(ids, len(rows), random)
        pooled, unpooled = (
            keyed_jagged(list(features), ids, len(rows), self._user_side, dedup, weights)
            for features, weights in (
                (self._feature_tables.pooled, self._schema.list_weights),
                (self._feature_tables.unpooled, {}),
            )
        )
        is_cold_B = torch.from_numpy(rows.is_cold_R)
        weights_B = torch.from_numpy(rows.weights_R * is_real_B)
        batch = Batch(
            pooled=pooled,
            unpooled=unpooled,
            numeric_BN=torch.from_numpy(rows.numeric_RN),
            labels_B=torch.from_numpy(rows.labels_R).float(),
            conversions_B=torch.from_numpy(rows.labels_R & rows.conversions_R).float(),
            weights_B=weights_B,
            users_B=torch.from_numpy(rows.users_R),
            is_cold_B=is_cold_B,
            is_new_B=torch.from_numpy(rows.is_new_R),
            match=match,
            counts=torch.from_numpy(counts),
            sets=RowSets.of(is_cold_B, weights_B),
            dedup=self._dedup_indices(rows, dedup, is_cold_B, weights_B) if dedup else None,
            vectors={name: self._vectors(rows, name, dedup) for name in rows.vectors},
            task_labels={
                name: torch.from_numpy(labels_B) for name, labels_B in rows.task_labels.items()
            },
            **_item_flags(rows),
        )
        if self._buckets is None:
            return batch
        return batch.filled_up(self._buckets, self._user_side)

    def _dedup_indices(
        self, rows: Chunk, dedup: RowDedup, is_cold_B: torch.Tensor, weights_B: torch.Tensor
    ) -> DedupIndices:
        first_rows_U, inverse_indices_B = map(torch.from_numpy, dedup)
        weights_U = weights_B.new_zeros(len(first_rows_U)).index_add(
            0, inverse_indices_B, weights_B
        )
        return DedupIndices(
            first_rows_U,
            inverse_indices_B,
            RowSets.of(is_cold_B[first_rows_U], weights_U),
            {name: int(rows.lists[name].lengths.sum()) for name in self._schema.sequences},
        )

    def _vectors(self, rows: Chunk, name: str, dedup: RowDedup | None) -> torch.Tensor:
        """Takes a column's vectors, once a user on the user side."""
        vectors_BE = rows.vectors[name]
        if dedup is not None and name in self._user_side:
            return torch.from_numpy(vectors_BE[dedup.first_rows_U])
        return torch.from_numpy(vectors_BE)


def _item_flags(rows: Chunk) -> dict[str, torch.Tensor]:
    """Returns the batch's flags of items; none where nothing says which items are new."""
    if (items := rows.items) is None:
        return {}
    flags = {
        "is_new_item_B": torch.from_numpy(items.is_new_R),
        "is_cold_item_B": torch.from_numpy(items.is_cold_R),
    }
    if items.frequency_R is not None:
        flags["item_frequency_B"] = torch.from_numpy(items.frequency_R)
    return flags

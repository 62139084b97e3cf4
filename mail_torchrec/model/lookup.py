"""Conversion of the two table collections' outputs to plain padded tensors by column.

Fields are found by name: the column order of a ``KeyedTensor`` depends on the sharding plan.
Shape letters as in ``model/features.py``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.dedup import USER_SIDE_GROUPS
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.model.features import FeatureEmbeddings, SequenceEmbeddings
from mail_torchrec.towers.layers.sequences import MatchInputs, position_mask


def feature_embeddings(
    batch: Batch,
    pooled: KeyedTensor,
    unpooled: dict[str, JaggedTensor],
    schema: Schema,
    feature_tables: FeatureTables,
) -> FeatureEmbeddings:
    """Collects the looked-up vectors of a batch by column.

    Args:
        batch: ids and lengths.
        pooled: output of the EmbeddingBagCollection.
        unpooled: output of the EmbeddingCollection.
        schema: columns and tables.
        feature_tables: feature keys and their tables.
    """
    found = _LookupOutputs(batch, pooled, unpooled, schema, feature_tables)
    fields = found.pooled_fields()
    fields |= {name: found.unpooled_field(name) for name in schema.unpooled_scalars}
    return FeatureEmbeddings(
        fields=fields,
        sequences={name: found.sequence(name) for name in schema.sequences},
        match={name: found.match(name) for name in feature_tables.match},
    )


@dataclass(frozen=True)
class _LookupOutputs:
    """Outputs of both table collections for a batch."""

    batch: Batch
    pooled: KeyedTensor
    unpooled: dict[str, JaggedTensor]
    schema: Schema
    feature_tables: FeatureTables

    def pooled_fields(self) -> dict[str, Tensor]:
        """Column -> pooled vectors, [U, S] on the user side, else [B, S].

        A list is pooled to its mean, so that a long one does not outweigh a short one; the shares
        of a weighted list sum to 1 already. The collection returns sums: where it has row-wise
        tables beside others, TorchRec divides the others' means once more by the lengths.
        """
        found: dict[str, Tensor] = self.pooled.to_dict()
        if self.batch.dedup is not None:
            # All columns at once: one operation costs less than one for each user-side column.
            users_US = self.batch.per_user(self.pooled.values())
            widths = self.pooled.length_per_key()
            of_users = KeyedTensor(self.pooled.keys(), widths, users_US).to_dict()
            found |= {
                name: of_users[name]
                for name in self.schema.names(*USER_SIDE_GROUPS)
                if name in found
            }
        return found | {
            name: found[name] / self._lengths(name, self.batch.pooled).clamp(min=1)[:, None]
            for name in self.schema.lists
            if name in found and name not in self.schema.list_weights
        }

    def unpooled_field(self, name: str) -> Tensor:
        """Vectors of a column of one id, [U, S] on the user side, else [B, S]."""
        vectors: Tensor = self.unpooled[name].values()
        is_of_user = self.schema.columns[name].group in USER_SIDE_GROUPS
        return self._with_surplus(vectors) if is_of_user else vectors

    def sequence(self, name: str) -> SequenceEmbeddings:
        """Pads the vectors of the parts of a behaviour sequence to T positions."""
        max_length = self.schema.columns[name].max_length
        lengths_U = self._lengths(name, self.batch.unpooled)
        parts = {
            part: _padded(self.unpooled[part], lengths_U, max_length)
            for part in self.schema.joined_parts(name)
        }
        bounds = *self.batch.num_behaviours(name), self.batch.buckets is not None
        if (action := self.schema.action_of(name)) is None:
            return SequenceEmbeddings(parts, lengths_U, None, *bounds)
        mask_UT = position_mask(lengths_U, max_length)
        ids_UT = torch.zeros(mask_UT.shape, dtype=torch.int64, device=mask_UT.device)
        ids_UT = ids_UT.masked_scatter(mask_UT, self.batch.unpooled[action].values())
        return SequenceEmbeddings(parts, lengths_U, ids_UT, *bounds)

    def match(self, name: str) -> MatchInputs:
        """Collects the output-side vectors and sampling counts of a sequence's match loss."""
        keys, ids = self.feature_tables.match[name], self.batch.match[name]
        dim = self.schema.table_dim(self.schema.match_column(name))
        target_BD, last_UD, negatives_KD = (
            self.unpooled[key].values()[..., :dim]
            for key in (keys.target, keys.last, keys.negatives)
        )
        return MatchInputs(
            target_BD=target_BD,
            last_UD=self._with_surplus(last_UD),
            negatives_KD=negatives_KD,
            last_ids_U=ids.last_U,
            negative_ids_K=ids.negatives_K,
            last_log_q_U=ids.last_log_q_U,
            negative_log_q_K=ids.negatives_log_q_K,
        )

    def _lengths(self, name: str, ids: KeyedJaggedTensor) -> Tensor:
        """Number of ids of a column, [U] on the user side, else [B]."""
        lengths_B: Tensor = ids[name].lengths()
        if self.schema.columns[name].group not in USER_SIDE_GROUPS:
            return lengths_B
        lengths_U = self.batch.per_user(lengths_B)
        return self._with_surplus(lengths_U[: len(lengths_U) - self.batch.num_surplus])

    def _with_surplus(self, x_UX: Tensor) -> Tensor:
        """Appends zeros for the surplus users to values of the others, [U, ...]."""
        if not self.batch.num_surplus:
            return x_UX
        sides = (0, 0) * (x_UX.dim() - 1)
        return functional.pad(x_UX, (*sides, 0, self.batch.num_surplus))


def _padded(vectors: JaggedTensor, lengths_U: Tensor, max_length: int) -> Tensor:
    return JaggedTensor(vectors.values(), lengths=lengths_U).to_padded_dense(max_length)

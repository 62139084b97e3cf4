"""What the two table collections returned -> plain tensors by column, as ``model/features.py`` and the towers see them.

Fields are found by name: the column order of a ``KeyedTensor`` depends on the sharding plan.
"""

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.dedup import USER_SIDE
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.model.features import LookedUp, StoredSequence
from mail_torchrec.towers.inputs import Match, position_mask


def looked_up(
    batch: Batch,
    pooled: KeyedTensor,
    unpooled: dict[str, JaggedTensor],
    schema: Schema,
    feature_tables: FeatureTables,
) -> LookedUp:
    """The stored vectors of a batch: one a row and field, and each sequence padded to its T; one a user on the user's side."""
    fields = _means(batch, pooled, schema) | {
        name: unpooled[name].values() for name in schema.unpooled_scalars
    }
    return LookedUp(
        fields=fields,
        sequences={name: _sequence(name, batch, unpooled, schema) for name in schema.sequences},
        match={
            name: _match(name, batch, unpooled, schema, feature_tables)
            for name in feature_tables.match
        },
    )


def _means(batch: Batch, pooled: KeyedTensor, schema: Schema) -> dict[str, Tensor]:
    """The pooled fields; a list's is the mean, so that a long one does not outweigh a short one.

    Not by the collection: where it has row-wise tables beside others, TorchRec divides the others'
    means once more by the lengths.
    """
    found: dict[str, Tensor] = pooled.to_dict()
    if (
        batch.dedup is not None
    ):  # all columns at once: one operation costs less than one for each of the users' side
        of_users = KeyedTensor(
            pooled.keys(), pooled.length_per_key(), batch.of_users(pooled.values())
        ).to_dict()
        found |= {name: of_users[name] for name in schema.names(*USER_SIDE) if name in found}
    return found | {
        name: found[name] / _lengths(name, batch.pooled, batch, schema).clamp(min=1)[:, None]
        for name in schema.lists
        if name in found
    }


def _lengths(name: str, ids: KeyedJaggedTensor, batch: Batch, schema: Schema) -> Tensor:
    """How many ids a column has, a row or a user."""
    lengths_B: Tensor = ids[name].lengths()
    return batch.of_users(lengths_B) if schema.columns[name].group in USER_SIDE else lengths_B


def _sequence(
    name: str, batch: Batch, unpooled: dict[str, JaggedTensor], schema: Schema
) -> StoredSequence:
    length = schema.columns[name].max_length
    lengths_U = _lengths(name, batch.unpooled, batch, schema)

    def padded(vectors: JaggedTensor) -> Tensor:
        return JaggedTensor(vectors.values(), lengths=lengths_U).to_padded_dense(length)

    values_UTS = padded(unpooled[name])
    if (action := schema.action_of(name)) is None:
        return StoredSequence(values_UTS, lengths_U)
    ids_UT = torch.zeros(values_UTS.shape[:2], dtype=torch.int64, device=values_UTS.device)
    ids_UT = ids_UT.masked_scatter(
        position_mask(lengths_U, length), batch.unpooled[action].values()
    )
    return StoredSequence(values_UTS, lengths_U, ids_UT, padded(unpooled[action]))


def _match(
    name: str,
    batch: Batch,
    unpooled: dict[str, JaggedTensor],
    schema: Schema,
    feature_tables: FeatureTables,
) -> Match:
    keys, ids, dim = feature_tables.match[name], batch.match[name], schema.table_dim(name)
    target, last, negatives = (
        unpooled[key].values()[..., :dim] for key in (keys.target, keys.last, keys.negatives)
    )
    return Match(
        target,
        last,
        negatives,
        ids.last_U,
        ids.negatives_K,
        ids.last_log_q_U,
        ids.negatives_log_q_K,
    )

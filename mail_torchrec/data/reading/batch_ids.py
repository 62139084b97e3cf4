"""Ids of a batch by feature, with user-side features deduplicated, and their jagged tensors.

Shapes: ``B`` rows of a batch, ``U`` deduplicated users (or rows where none are), ``F`` features.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.parquet.jagged import JaggedArray
from mail_torchrec.data.reading.chunk import Chunk
from mail_torchrec.data.reading.dedup import RowDedup

BatchIds = dict[str, Ints | JaggedArray]
"""Table rows by feature: one entry a user for user-side features, one a row for the others; a plain
array where each entry has one id."""


def batch_ids(
    rows: Chunk, scalars: Sequence[str], user_side: set[str], dedup: RowDedup | None
) -> BatchIds:
    """Takes the ids of all columns.

    Args:
        rows: B rows.
        scalars: columns of one id, in the order of ``Chunk.scalars_CR``.
        user_side: features with one entry a user.
        dedup: deduplicated users of the rows.
    """
    ids: BatchIds = dict(zip(scalars, rows.scalars_CR, strict=True)) | rows.lists
    if dedup is not None:
        for name in user_side & ids.keys():
            part = ids[name]
            ids[name] = part.take(dedup.first_rows_U)
    return ids


def keyed_jagged(
    features: Sequence[str],
    ids: BatchIds,
    num_rows: int,
    user_side: set[str],
    dedup: RowDedup | None,
    weights: Mapping[str, str] | None = None,
) -> KeyedJaggedTensor:
    """Builds the jagged tensor of some features.

    Args:
        features: its keys, in order.
        ids: of all features.
        num_rows: B.
        user_side: features with one entry a user, which stands in the user's first row.
        dedup: deduplicated users of the rows.
        weights: column of the weights by feature; the ids of other features weigh 1. Without any
            the tensor has no weights.
    """
    lengths_FB = np.zeros((len(features), num_rows), dtype=np.int64)
    values: list[Ints] = []
    for feature, lengths_B in zip(features, lengths_FB, strict=True):
        part = ids[feature]
        rows = dedup.first_rows_U if dedup and feature in user_side else slice(None)
        if isinstance(part, JaggedArray):
            lengths_B[rows] = part.lengths
            values.append(part.values)
        else:
            lengths_B[rows] = 1
            values.append(part)
    return KeyedJaggedTensor(
        list(features),
        torch.from_numpy(np.concatenate(values)),
        weights=_weights(features, values, ids, weights) if weights else None,
        lengths=torch.from_numpy(lengths_FB.reshape(-1)),
        length_per_key=[len(of_feature) for of_feature in values],
    )


def _weights(
    features: Sequence[str], values: Sequence[Ints], ids: BatchIds, weights: Mapping[str, str]
) -> torch.Tensor:
    """Concatenates the weights of all features, as their values are."""
    parts = []
    for feature, of_feature in zip(features, values, strict=True):
        part = ids[weights[feature]] if feature in weights else None
        ones = np.ones(len(of_feature), np.float32)
        parts.append(part.values if isinstance(part, JaggedArray) else ones)
    return torch.from_numpy(np.concatenate(parts))

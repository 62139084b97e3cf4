"""Ids of a batch by feature, with user-side features deduplicated, and their jagged tensors.

The match loss has features of its own: target items, last behaviours and sampled negatives.

Shapes: ``B`` rows of a batch, ``U`` deduplicated users (or rows where none are), ``F`` features,
``K`` negatives.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.data.negatives import NegativeSampler
from mail_torchrec.data.parquet.arrow import Floats, Ints
from mail_torchrec.data.parquet.jagged import JaggedArray
from mail_torchrec.data.reading.batch import MatchIds
from mail_torchrec.data.reading.chunk import Chunk
from mail_torchrec.data.reading.dedup import RowDedup
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Schema

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


class MatchCollator:
    """Draws the negatives of every sequence and adds its match features to the ids of a batch.

    Args:
        schema: target items of the sequences.
        feature_tables: match features.
        samplers: samplers of the negatives of each sequence; none outside training.
    """

    def __init__(
        self,
        schema: Schema,
        feature_tables: FeatureTables,
        samplers: Mapping[str, NegativeSampler],
    ) -> None:
        self._features, self._samplers = feature_tables.match, samplers
        self._columns = {sequence: schema.match_column(sequence) for sequence in self._features}
        self._targets = {
            sequence: schema.target_of(column) for sequence, column in self._columns.items()
        }

    def __call__(
        self, ids: BatchIds, num_rows: int, random: Callable[[int], np.random.Generator]
    ) -> dict[str, MatchIds]:
        """Adds the match features to ``ids`` and returns the last behaviours and negatives.

        Args:
            ids: of the columns.
            num_rows: B.
            random: returns the generator of a stream; each sequence has its own, from 1.
        """
        return {
            sequence: self._of_sequence(sequence, ids, num_rows, random(stream))
            for stream, sequence in enumerate(self._features, start=1)
        }

    def _of_sequence(
        self, sequence: str, ids: BatchIds, num_rows: int, random: np.random.Generator
    ) -> MatchIds:
        features, sampler = self._features[sequence], self._samplers.get(sequence)
        behaviours = ids[self._columns[sequence]]
        assert isinstance(behaviours, JaggedArray)
        last_U = behaviours.last(0)
        negatives_K = sampler.sample(random) if sampler else np.zeros(0, dtype=np.int64)
        ids[features.target], ids[features.last] = ids[self._targets[sequence]], last_U
        ids[features.negatives] = _spread_evenly(negatives_K, num_rows)
        return MatchIds(
            last_U=torch.from_numpy(last_U),
            negatives_K=torch.from_numpy(negatives_K),
            last_log_q_U=torch.from_numpy(_log_q(sampler, last_U)),
            negatives_log_q_K=torch.from_numpy(_log_q(sampler, negatives_K)),
        )


def _spread_evenly(negatives_K: Ints, num_rows: int) -> JaggedArray:
    """Spreads a batch's negatives over its rows, which a jagged tensor needs them to stand in."""
    ends = len(negatives_K) * np.arange(num_rows + 1) // num_rows
    return JaggedArray(negatives_K, np.diff(ends))


def _log_q(sampler: NegativeSampler | None, rows: Ints) -> Floats:
    """Returns the log-q correction of table rows, of their shape; 0 without a sampler."""
    if sampler is None:
        return np.zeros(len(rows), dtype=np.float32)
    return sampler.log_expected_counts(rows)

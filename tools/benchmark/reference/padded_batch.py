"""Pads the reader's jagged batches for the direct reference: ids of length T, one tensor a column.

All trainers read the same rows through the same reader, so that the training is compared; the
padding is counted as the reference's own input. It is one scatter a list column, of a few percent
of the reference's step at most, and reported.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mail_torchrec.data.reading.batch import Batch, MatchIds
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Schema


@dataclass
class PaddedBatch:
    """A batch of ``B`` rows, ``N`` numeric columns, histories of ``T`` positions."""

    ids: dict[str, Tensor]
    """Table rows of each column, [B], or of a list [B, T]; 0 behind a list's length."""
    lengths: dict[str, Tensor]
    """Number of entries of each row [B], by list column."""
    numeric_BN: Tensor
    labels_B: Tensor
    is_cold_B: Tensor
    match: MatchIds
    """Last behaviours and negatives of the one sequence: rows of the output-side table."""


def pad_batch(batch: Batch, schema: Schema, feature_tables: FeatureTables) -> PaddedBatch:
    """Pads the lists of all rows."""
    [(sequence, _)] = feature_tables.match.items()
    ids, lengths = {}, {}
    for name in schema.id_columns:
        jagged = (batch.unpooled if name in feature_tables.unpooled else batch.pooled)[name]
        if name in schema.lists:
            ids[name] = _padded(jagged.values(), jagged.lengths(), schema.columns[name].max_length)
            lengths[name] = jagged.lengths()
        else:
            ids[name] = jagged.values()
    match = batch.match[sequence]
    return PaddedBatch(ids, lengths, batch.numeric_BN, batch.labels_B, batch.is_cold_B, match)


def _padded(values: Tensor, lengths_B: Tensor, max_length: int) -> Tensor:
    ids_BT = values.new_zeros(len(lengths_B), max_length)
    mask_BT = torch.arange(max_length, device=values.device) < lengths_B.unsqueeze(1)
    return ids_BT.masked_scatter_(mask_BT, values)

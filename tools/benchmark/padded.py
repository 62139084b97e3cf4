"""The reader's jagged batches as the reference takes them: ids padded to T, one tensor a column.

Both sides read the same rows through the same reader, so that what is compared is the training; the
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
class Padded:
    """A batch of ``B`` rows."""

    ids: dict[str, Tensor]
    """Column -> table rows, [B], or of a list [B, T]; 0 behind a list's length."""
    lengths: dict[str, Tensor]
    """List column -> entries of each row [B]."""
    numeric_BN: Tensor
    labels_B: Tensor
    is_cold_B: Tensor
    users_B: Tensor
    is_new_B: Tensor
    match: MatchIds
    """Of the one sequence; ``last_B`` and the negatives are rows of the output-side table."""


def padded(batch: Batch, schema: Schema, feature_tables: FeatureTables) -> Padded:
    """The same rows, padded."""
    [(sequence, _)] = feature_tables.match.items()
    ids, lengths = {}, {}
    for name in schema.id_columns:
        jagged = (batch.unpooled if name in feature_tables.unpooled else batch.pooled)[name]
        if name in schema.lists:
            ids[name] = _padded(jagged.values(), jagged.lengths(), schema.columns[name].max_length)
            lengths[name] = jagged.lengths()
        else:
            ids[name] = jagged.values()
    return Padded(
        ids, lengths, batch.numeric_BN, batch.labels_B, batch.is_cold_B, batch.users_B, batch.is_new_B, batch.match[sequence]
    )  # fmt: skip


def _padded(values: Tensor, lengths_B: Tensor, max_length: int) -> Tensor:
    ids_BT = values.new_zeros(len(lengths_B), max_length)
    mask_BT = torch.arange(max_length, device=values.device) < lengths_B.unsqueeze(1)
    return ids_BT.masked_scatter_(mask_BT, values)

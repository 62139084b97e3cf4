"""Match features of a batch: target items, last behaviours and sampled negatives.

Shapes: ``B`` rows of a batch, ``U`` deduplicated users (or rows where none are), ``K`` negatives.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from mail_torchrec.data.negatives import NegativeSampler
from mail_torchrec.data.parquet.arrow import Floats, Ints
from mail_torchrec.data.parquet.jagged import JaggedArray
from mail_torchrec.data.reading.batch import MatchIds
from mail_torchrec.data.reading.batch_ids import BatchIds
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Schema


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

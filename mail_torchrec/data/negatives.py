"""Sampled negatives of the match loss, with the log-q correction of sampled softmax.

A softmax over sampled classes is corrected by subtracting the log of the expected number of times
that each class is sampled from its logit (Bengio and Senecal 2008, "Adaptive importance sampling to
accelerate training of a neural probabilistic language model"; Jean et al. 2015, arXiv:1412.2007;
for retrieval Yi et al. 2019, "Sampling-bias-corrected neural modeling").

Shapes: ``K`` negatives of a batch, ``V`` rows of the item table that are drawn, ``N`` ids.
"""

from enum import StrEnum

import numpy as np
import numpy.typing as npt

from mail_torchrec.data.ids.policy import IdEncoder
from mail_torchrec.data.parquet.arrow import Floats, Ints


class NegativeDistribution(StrEnum):
    """Distribution of the negatives: by frequency rank, by frequency, or uniform."""

    LOG_UNIFORM = "log_uniform"
    UNIGRAM = "unigram"
    UNIFORM = "uniform"


class NegativeSampler:
    """Draws rows of an item table with replacement.

    ``log_uniform`` gives the row of frequency rank k the probability ``log((k + 2) / (k + 1)) /
    log(n + 1)``, k from 0 (TensorFlow's ``log_uniform_candidate_sampler``, which DMR's released
    code uses); ``unigram`` its share of the training counts; ``uniform`` 1 / n.

    Args:
        distribution: one of the three.
        num_samples: K, samples a batch.
        encoder: of the item table.
        table: its name, for messages.

    Raises:
        ValueError: log_uniform or unigram for a table whose id policy counts no ids; an empty
            vocabulary.
    """

    def __init__(
        self, distribution: NegativeDistribution, num_samples: int, encoder: IdEncoder, table: str
    ) -> None:
        self.num_samples = num_samples
        probabilities_V = _probabilities(distribution, encoder, table)
        self._cumulative_V: npt.NDArray[np.float64] = np.cumsum(probabilities_V)
        self._rows_V = encoder.rows_V
        # Unknown and missing ids are never drawn; their correction is that of the rarest id.
        expected = np.full(encoder.num_rows, num_samples * probabilities_V.min())
        expected[self._rows_V] = num_samples * probabilities_V
        self._log_expected_counts: Floats = np.log(expected).astype(np.float32)

    def sample(self, random: np.random.Generator) -> Ints:
        """Draws table rows [K]."""
        points_K = random.random(self.num_samples) * self._cumulative_V[-1]
        found_K = np.searchsorted(self._cumulative_V, points_K, side="right")
        rows_K: Ints = self._rows_V[np.minimum(found_K, len(self._cumulative_V) - 1)]
        return rows_K

    def log_expected_counts(self, rows_N: Ints) -> Floats:
        """Returns the log of how often each table row is expected among K samples, [N]."""
        return self._log_expected_counts[rows_N]


def _probabilities(
    distribution: NegativeDistribution, encoder: IdEncoder, table: str
) -> npt.NDArray[np.float64]:
    """Returns the probability of each row that is drawn, [V]."""
    num_values = len(encoder.rows_V)
    if not num_values:
        raise ValueError(
            f"table '{table}' should hold values to draw negatives from, its vocabulary is "
            "empty; lower its min_count"
        )
    if distribution is NegativeDistribution.UNIFORM:
        return np.full(num_values, 1.0 / num_values)
    counts_V = encoder.counts_V
    if counts_V is None:
        raise ValueError(
            f"negatives '{distribution}' need frequencies, which the ids of table '{table}' lack; "
            "use 'uniform' or a vocabulary"
        )
    if distribution is NegativeDistribution.UNIGRAM:
        unigram_V: npt.NDArray[np.float64] = counts_V / counts_V.sum()
        return unigram_V
    return _log_uniform(counts_V)


def _log_uniform(counts_V: Ints | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the log-uniform probabilities of values by their frequency ranks, [V]."""
    ranks_V = np.empty(len(counts_V), dtype=np.int64)
    ranks_V[np.argsort(-counts_V, kind="stable")] = np.arange(len(counts_V))
    probabilities_V: npt.NDArray[np.float64] = np.log((ranks_V + 2) / (ranks_V + 1)) / np.log(
        len(counts_V) + 1
    )
    return probabilities_V

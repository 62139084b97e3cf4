"""Sampled negatives for the match loss: which ids, and how often each was to be expected."""

from enum import StrEnum

import numpy as np
import numpy.typing as npt

from mail_torchrec.data.ids.vocabulary import FIRST_ROW, IdEncoder, Vocabulary
from mail_torchrec.data.parquet.arrow import Floats, Ints


class Negatives(StrEnum):
    """How negatives are drawn: by frequency rank, by frequency, or all rows alike."""

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
        ValueError: log_uniform or unigram for a hashed table, which has neither ranks nor counts;
            an empty vocabulary.
    """

    def __init__(
        self, distribution: Negatives, num_samples: int, encoder: IdEncoder, table: str
    ) -> None:
        self.num_samples = num_samples
        num_values = encoder.num_rows - FIRST_ROW
        if not num_values:
            raise ValueError(
                f"table '{table}' should hold values to draw negatives from, its vocabulary is "
                "empty; lower its min_count"
            )
        if distribution is Negatives.UNIFORM:
            probabilities = np.full(num_values, 1.0 / num_values)
        elif not isinstance(encoder, Vocabulary):
            raise ValueError(
                f"negatives '{distribution}' need frequencies, which the hashed table '{table}' "
                "lacks; use 'uniform' or a vocabulary"
            )
        elif distribution is Negatives.LOG_UNIFORM:
            ranks = np.empty(num_values, dtype=np.int64)
            ranks[np.argsort(-encoder.counts, kind="stable")] = np.arange(num_values)
            probabilities = np.log((ranks + 2) / (ranks + 1)) / np.log(num_values + 1)
        else:
            probabilities = encoder.counts / encoder.counts.sum()
        self._cumulative: npt.NDArray[np.float64] = np.cumsum(probabilities)
        least = np.full(
            FIRST_ROW, probabilities.min()
        )  # unknown and missing ids are never drawn; their correction is the rarest id's
        self._log_expected: Floats = np.log(
            num_samples * np.concatenate([least, probabilities])
        ).astype(np.float32)

    def sample(self, random: np.random.Generator) -> Ints:
        """K rows."""
        found = np.searchsorted(
            self._cumulative, random.random(self.num_samples) * self._cumulative[-1], side="right"
        )
        rows: Ints = np.minimum(found, len(self._cumulative) - 1) + FIRST_ROW
        return rows

    def log_expected(self, rows: Ints) -> Floats:
        """Log of the expected number of times that each row is among the K samples."""
        return self._log_expected[rows]

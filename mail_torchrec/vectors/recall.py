"""Recall of an index: the share of the exact best items that it finds.

``U`` users, ``N`` items of a batch, ``K`` best items.
"""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from mail_torchrec.data.parquet.arrow import Floats, Ints
from mail_torchrec.vectors.index import BATCH_SIZE, sample_vectors
from mail_torchrec.vectors.vector_files import num_vectors, read_vectors


@dataclass(frozen=True)
class IndexRecall:
    """Recall and search times of an index."""

    users: int
    """Number of users that were searched for."""
    recall: dict[int, float]
    """By k, the share of the exact k best items that is among the index's k, mean over users."""
    exact_ms: float
    """Milliseconds a user of the exact search, all users at once."""
    index_ms: float
    """Milliseconds a user of the index's search, all users at once."""


def measure_recall(
    index: Any, items: Path, users: Path, at: tuple[int, ...], num_users: int
) -> IndexRecall:
    """Searches for some users at even distances, by the index and exactly.

    Args:
        index: FAISS index of ``items``.
        items: file of item vectors.
        users: file of user vectors.
        at: values of k.
        num_users: most users to search for.
    """
    users_UD = sample_vectors(users, num_users)
    max_k = min(max(at), num_vectors(items))
    start = perf_counter()
    exact_UK = exact_search(users_UD, items, max_k)
    middle = perf_counter()
    found_UK = index.search(users_UD, max_k)[1]
    end = perf_counter()
    return IndexRecall(
        len(users_UD),
        {k: _recall(exact_UK[:, :k], found_UK[:, :k]) for k in (min(k, max_k) for k in at)},
        (middle - start) * 1e3 / len(users_UD),
        (end - middle) * 1e3 / len(users_UD),
    )


def exact_search(users_UD: Floats, items: Path, k: int) -> Ints:
    """Finds the rows [U, k] of each user's items with the greatest products, greatest first.

    Args:
        users_UD: user vectors.
        items: file of item vectors; all of them are compared.
        k: number of items a user.
    """
    best_UK = np.zeros((len(users_UD), 0), np.float32)
    rows_UK = np.zeros((len(users_UD), 0), np.int64)
    start = 0
    for vectors_ND in read_vectors(items, BATCH_SIZE):
        scores_UN = users_UD @ vectors_ND.T
        columns_UK = _greatest(scores_UN, k)
        best_UK = np.concatenate([best_UK, np.take_along_axis(scores_UN, columns_UK, 1)], axis=1)
        rows_UK = np.concatenate([rows_UK, columns_UK + start], axis=1)
        kept_UK = _greatest(best_UK, k)
        best_UK = np.take_along_axis(best_UK, kept_UK, 1)
        rows_UK = np.take_along_axis(rows_UK, kept_UK, 1)
        start += len(vectors_ND)
    order_UK = np.argsort(-best_UK, axis=1, kind="stable")
    result: Ints = np.take_along_axis(rows_UK, order_UK, 1)
    return result


def _greatest(scores_UN: Floats, k: int) -> Ints:
    """Finds the columns of each row's ``k`` greatest scores, in any order; all where fewer."""
    count = min(k, scores_UN.shape[1])
    return np.argpartition(scores_UN, -count, axis=1)[:, -count:]


def _recall(exact_UK: Ints, found_UK: Ints) -> float:
    hits = [
        len(np.intersect1d(exact, found)) for exact, found in zip(exact_UK, found_UK, strict=True)
    ]
    return float(np.mean(hits)) / int(exact_UK.shape[1])

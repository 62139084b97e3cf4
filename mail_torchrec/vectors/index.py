"""An approximate index over item vectors (FAISS), and how much of the exact answer it finds.

Number ``i`` of the index is row ``i`` of the item file.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.data.parquet.arrow import Floats, Ints
from mail_torchrec.vectors.vector_files import num_vectors, read_vectors

_AT_A_TIME = 16_384  # vectors in memory beside the index
_TO_TRAIN = 524_288  # vectors that cells or codes are learnt from
_FEW = 2_000  # items that are looked at one and all


@dataclass(frozen=True)
class IndexSettings:
    """Which index."""

    factory: str | None = None
    """FAISS's own words: Flat, "IVF4096,SQ8", HNSW32 ... None chooses by the number of items."""
    parameters: str = ""
    """FAISS's own words as well, such as nprobe=64; they are kept in the file."""
    threads: int | None = None

    def filled_in(self, num_items: int) -> "IndexSettings":
        """With an index chosen: some ``2 sqrt(items)`` cells, of which a search looks into ``sqrt(2 cells)``.

        On trained vectors, whose lengths differ, HNSW found fewer of the 100 best and takes more
        memory.
        """
        if self.factory is not None:
            return self
        if num_items < _FEW:
            return replace(self, factory="Flat")
        cells = 2 ** round(math.log2(2 * math.sqrt(num_items)))
        return replace(
            self,
            factory=f"IVF{cells},Flat",
            parameters=self.parameters or f"nprobe={round(math.sqrt(2 * cells))}",
        )


def build_index(items: Path, settings: IndexSettings, path: Path) -> Any:
    """Reads item vectors piece by piece into an index by inner product, and writes it.

    Args:
        items: what :class:`VectorWriter` wrote.
        settings: of the index.
        path: of the file to write.

    Raises:
        ValueError: FAISS is missing, or knows no such index or parameter, or there are too few
            vectors for it.
    """
    faiss = _library(settings.threads)
    total, dim = num_vectors(items), next(read_vectors(items, 1)).shape[1]
    try:
        index = faiss.index_factory(dim, settings.factory, faiss.METRIC_INNER_PRODUCT)
        if settings.parameters:
            faiss.ParameterSpace().set_index_parameters(index, settings.parameters)
        if not index.is_trained:
            index.train(_evenly(items, total, _TO_TRAIN))
        for vectors_ND in read_vectors(items, _AT_A_TIME):
            index.add(vectors_ND)
    except RuntimeError as error:
        raise ValueError(
            f"FAISS cannot make index '{settings.factory}' ({settings.parameters}) of {total} "
            f"vectors: {error}"
        ) from error
    faiss.write_index(index, str(path))
    return index


def check_library() -> None:
    """Raises ValueError where FAISS is missing."""
    _library(None)


@dataclass(frozen=True)
class Recall:
    """How well an index answers users."""

    users: int
    recall: dict[int, float]
    """k -> the share of the exact k best items that is among the index's k, mean over users."""
    exact_ms: float
    """A user, all users at once."""
    index_ms: float


def measure_recall(
    index: Any, items: Path, users: Path, at: tuple[int, ...], num_users: int
) -> Recall:
    """Searches for some users, evenly chosen, by the index and among all items.

    Args:
        index: of ``items``.
        items: item vectors.
        users: user vectors.
        at: the k.
        num_users: at most so many.
    """
    users_UD = _evenly(users, num_vectors(users), num_users)
    most = min(max(at), num_vectors(items))
    start = perf_counter()
    exact_UK = nearest(users_UD, items, most)
    middle = perf_counter()
    found_UK = index.search(users_UD, most)[1]
    end = perf_counter()
    recall = {}
    for k in dict.fromkeys(min(k, most) for k in at):
        hits = [
            len(np.intersect1d(exact, found))
            for exact, found in zip(exact_UK[:, :k], found_UK[:, :k], strict=True)
        ]
        recall[k] = float(np.mean(hits)) / k
    return Recall(
        len(users_UD),
        recall,
        (middle - start) * 1e3 / len(users_UD),
        (end - middle) * 1e3 / len(users_UD),
    )


def nearest(users_UD: Floats, items: Path, k: int) -> Ints:
    """The rows of the ``k`` items with the greatest products with each user, [U, k], the greatest first; all items are looked at."""
    best_UK = np.zeros((len(users_UD), 0), np.float32)
    rows_UK = np.zeros((len(users_UD), 0), np.int64)
    start = 0
    for vectors_ND in read_vectors(items, _AT_A_TIME):
        scores_UN = users_UD @ vectors_ND.T
        in_piece_UK = _greatest(scores_UN, k)
        best_UK = np.concatenate([best_UK, np.take_along_axis(scores_UN, in_piece_UK, 1)], axis=1)
        rows_UK = np.concatenate([rows_UK, in_piece_UK + start], axis=1)
        kept_UK = _greatest(best_UK, k)
        best_UK, rows_UK = (
            np.take_along_axis(best_UK, kept_UK, 1),
            np.take_along_axis(rows_UK, kept_UK, 1),
        )
        start += len(vectors_ND)
    result: Ints = np.take_along_axis(rows_UK, np.argsort(-best_UK, axis=1, kind="stable"), 1)
    return result


def _greatest(scores_UN: Floats, k: int) -> Ints:
    """Where the ``k`` greatest of each row are, in any order; all where there are fewer."""
    count = min(k, scores_UN.shape[1])
    return np.argpartition(scores_UN, -count, axis=1)[:, -count:]


def _evenly(path: Path, total: int, most: int) -> Floats:
    """Vectors of a file, every so many-th."""
    wanted: NDArray[np.int64] = np.unique(
        np.linspace(0, total - 1, min(most, total)).astype(np.int64)
    )
    parts, start = [], 0
    for vectors_ND in read_vectors(path, _AT_A_TIME):
        low, high = np.searchsorted(wanted, [start, start + len(vectors_ND)])
        parts.append(vectors_ND[wanted[low:high] - start])
        start += len(vectors_ND)
    return np.concatenate(parts)


def _library(threads: int | None) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "an index needs FAISS: pip install 'mail-torchrec[vectors]', or write vectors alone "
            "by --index none"
        ) from error
    if threads is not None:
        faiss.omp_set_num_threads(threads)
    return faiss

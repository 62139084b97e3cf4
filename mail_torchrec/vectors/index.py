"""Approximate index over item vectors (FAISS), by inner product.

Number ``i`` of the index is row ``i`` of the item file. ``N`` vectors of a batch, ``D`` dimensions.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.data.parquet.arrow import Floats
from mail_torchrec.vectors.vector_files import num_vectors, read_vectors

BATCH_SIZE = 16_384  # vectors in memory beside the index
_TRAINING_VECTORS = 524_288  # most vectors that cells or codes are learnt from
_MAX_FLAT = 2_000  # below so many items a search compares all of them


@dataclass(frozen=True)
class IndexSettings:
    """Kind of the index."""

    factory: str | None = None
    """FAISS's index factory string: Flat, "IVF4096,SQ8", HNSW32 ... None chooses by the number of
    items."""
    parameters: str = ""
    """FAISS's index parameters, such as nprobe=64; they are stored in the index's file."""
    threads: int | None = None
    """Number of FAISS's threads; None leaves it to FAISS."""

    def resolve(self, num_items: int) -> "IndexSettings":
        """Chooses an index where none was given.

        Some ``2 sqrt(items)`` cells, of which a search probes ``sqrt(2 cells)``. On trained
        vectors, whose norms differ, HNSW found fewer of the 100 best items and takes more memory.
        """
        if self.factory is not None:
            return self
        if num_items < _MAX_FLAT:
            return replace(self, factory="Flat")
        cells = 2 ** round(math.log2(2 * math.sqrt(num_items)))
        probes = round(math.sqrt(2 * cells))
        return replace(
            self,
            factory=f"IVF{cells},Flat",
            parameters=self.parameters or f"nprobe={probes}",
        )


def build_index(items: Path, settings: IndexSettings, path: Path) -> Any:
    """Builds an index of item vectors batch by batch, and writes it.

    Args:
        items: file that :class:`VectorWriter` wrote.
        settings: kind of the index.
        path: file to write.

    Raises:
        ValueError: FAISS is missing, knows no such index or parameter, or needs more vectors.
    """
    faiss = load_faiss(settings.threads)
    total, dim = num_vectors(items), next(read_vectors(items, 1)).shape[1]
    try:
        index = faiss.index_factory(dim, settings.factory, faiss.METRIC_INNER_PRODUCT)
        if settings.parameters:
            faiss.ParameterSpace().set_index_parameters(index, settings.parameters)
        if not index.is_trained:
            index.train(sample_vectors(items, _TRAINING_VECTORS))
        for vectors_ND in read_vectors(items, BATCH_SIZE):
            index.add(vectors_ND)
    except RuntimeError as error:
        raise ValueError(
            f"FAISS cannot make index '{settings.factory}' ({settings.parameters}) of {total} "
            f"vectors: {error}"
        ) from error
    faiss.write_index(index, str(path))
    return index


def load_faiss(threads: int | None = None) -> Any:
    """Imports FAISS.

    Args:
        threads: number of FAISS's threads; None leaves it to FAISS.

    Raises:
        ValueError: FAISS is not installed.
    """
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


def sample_vectors(path: Path, max_vectors: int) -> Floats:
    """Reads vectors of a file at even distances, [at most max_vectors, D]."""
    total = num_vectors(path)
    places = np.linspace(0, total - 1, min(max_vectors, total))
    rows: NDArray[np.int64] = np.unique(places.astype(np.int64))
    parts, start = [], 0
    for vectors_ND in read_vectors(path, BATCH_SIZE):
        low, high = np.searchsorted(rows, [start, start + len(vectors_ND)])
        parts.append(vectors_ND[rows[low:high] - start])
        start += len(vectors_ND)
    return np.concatenate(parts)

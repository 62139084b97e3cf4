"""Times of functions that all ranks run at once, and coefficients fitted to them.

Shape letters: ``P`` measured points, ``C`` terms that are fitted.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from mail_torchrec.distributed.collectives import gather_objects, world_size

_REPEATS = 5

FloatArray = NDArray[np.float64]


def timed(run: Callable[[], object], device: torch.device, repeats: int = _REPEATS) -> float:
    """Returns the median milliseconds of a function that all ranks run at once.

    Args:
        run: the function.
        device: whose work is waited for.
        repeats: times after one to warm up.

    Returns:
        The slowest rank's median.
    """
    found = []
    for _ in range(repeats + 1):
        if world_size() > 1:
            dist.barrier()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append((time.perf_counter() - start) * 1e3)
    return max(gather_objects(median(found[1:])))


def fit(terms_PC: FloatArray, ms_P: FloatArray) -> list[float]:
    """Fits coefficients of at least 0, by the least squares of relative errors.

    Args:
        terms_PC: terms of each point.
        ms_P: milliseconds of each point.
    """
    num_terms = terms_PC.shape[1]
    scaled_PC, ones_P = terms_PC / ms_P[:, None], np.ones(len(ms_P))
    best: tuple[float, list[float]] = (float("inf"), [0.0] * num_terms)
    for chosen in _subsets(range(num_terms)):
        part, *_ = np.linalg.lstsq(scaled_PC[:, chosen], ones_P, rcond=None)
        error = float(np.square(scaled_PC[:, chosen] @ part - ones_P).sum())
        if part.min() >= 0 and error < best[0]:
            found = [0.0] * num_terms
            for term, coefficient in zip(chosen, part.tolist(), strict=True):
                found[term] = coefficient
            best = error, found
    return best[1]


def _subsets(terms: Sequence[int]) -> list[list[int]]:
    """Lists the subsets that are not empty."""
    sizes = range(1, len(terms) + 1)
    return [list(part) for size in sizes for part in itertools.combinations(terms, size)]

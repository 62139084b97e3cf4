"""Maximum mean discrepancy of two sets of vectors, with the value that chance alone reaches.

Shape letters: ``N``, ``M`` vectors of two sets; ``V`` vectors of both; ``D`` elements; ``P``
permutations.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_PERMUTATIONS, _SEED = 200, 0
_QUANTILE = 0.95
_MAX_PAIRED = 1000  # vectors whose distances the median is taken of


class Discrepancy(NamedTuple):
    """Squared MMD, and its 95 % quantile were both sets of one distribution."""

    squared: float
    noise: float


def median_distance(vectors_VD: NDArray[Any]) -> float:
    """Computes the median distance of two vectors, the usual bandwidth of the kernel.

    Of more than 1,000 vectors it takes 1,000 at even distances.

    Args:
        vectors_VD: at least two vectors.

    Returns:
        The median over pairs, above 0: 1 where all vectors are equal.
    """
    step = -(-len(vectors_VD) // _MAX_PAIRED)
    vectors_VD = vectors_VD[::step].astype(np.float64)
    squared_VV = _squared_distances(vectors_VD)
    median = float(np.sqrt(np.median(squared_VV[np.triu_indices(len(vectors_VD), 1)])))
    return median if median > 0 else 1.0


def mean_discrepancy(
    first_ND: NDArray[Any], second_MD: NDArray[Any], bandwidth: float
) -> Discrepancy:
    """Computes the squared MMD with a Gaussian kernel, unbiased (Gretton et al., JMLR 2012, Eq. 3).

    It is about 0, and may be below, where both sets are of one distribution. The quantile is that
    of 200 permutations of the vectors among the sets (the same paper, Section 5.2).

    Args:
        first_ND: at least 2 vectors.
        second_MD: at least 2 vectors.
        bandwidth: ``s`` of the kernel ``exp(-|x - y|^2 / (2 s^2))``.
    """
    vectors_VD = np.concatenate([first_ND, second_MD]).astype(np.float64)
    kernel_VV = np.exp(_squared_distances(vectors_VD) / (-2 * bandwidth**2)).astype(np.float32)
    np.fill_diagonal(kernel_VV, 0)
    random = np.random.default_rng(_SEED)
    is_first_V = np.arange(len(vectors_VD)) < len(first_ND)
    permuted = [random.permutation(is_first_V) for _ in range(_PERMUTATIONS)]
    squared_P = _squared_of_splits(kernel_VV, np.stack([is_first_V, *permuted], axis=1))
    return Discrepancy(float(squared_P[0]), float(np.quantile(squared_P[1:], _QUANTILE)))


def _squared_of_splits(
    kernel_VV: NDArray[np.float32], is_first_VP: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Computes the squared MMD of several splits of the vectors into two sets, [P]."""
    sums_VP = (kernel_VV @ is_first_VP.astype(np.float32)).astype(np.float64)
    total_V1 = kernel_VV.sum(1, dtype=np.float64)[:, None]
    first_P = np.where(is_first_VP, sums_VP, 0).sum(0)
    both_P = np.where(is_first_VP, 0, sums_VP).sum(0)
    second_P = np.where(is_first_VP, 0, total_V1 - sums_VP).sum(0)
    num_first = int(is_first_VP[:, 0].sum())
    num_second = len(kernel_VV) - num_first
    squared_P: NDArray[np.float64] = (
        first_P / (num_first * (num_first - 1))
        + second_P / (num_second * (num_second - 1))
        - 2 * both_P / (num_first * num_second)
    )
    return squared_P


def _squared_distances(vectors_VD: NDArray[np.float64]) -> NDArray[np.float64]:
    vectors_VD = vectors_VD - vectors_VD.mean(0)  # or norms far from 0 would cancel
    squares_V = np.square(vectors_VD).sum(1)
    squared_VV = squares_V[:, None] + squares_V - 2 * vectors_VD @ vectors_VD.T
    result: NDArray[np.float64] = np.maximum(squared_VV, 0)  # rounding makes some negative
    return result

"""Compares two sets of vectors by numbers and by a t-SNE embedding.

Shape letters: ``N``, ``M`` vectors of two sets; ``U`` users, of each of whom there is a real vector
and a virtual one; ``D`` elements.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE

_PERPLEXITY, _SEED = 30, 0

Floats = NDArray[np.float64]


def explained_variance(real_UD: NDArray[Any], virtual_UD: NDArray[Any]) -> float:
    """Computes R^2 = 1 - |real - virtual|^2 / |real - mean|^2, over users and elements.

    Below 0 the mean of all users would be nearer.
    """
    error, variance = np.square(real_UD - virtual_UD), np.square(real_UD - real_UD.mean(0))
    return float(1 - error.sum() / variance.sum())


def rescaled_explained_variance(real_UD: NDArray[Any], virtual_UD: NDArray[Any]) -> float:
    """Computes R^2 after the best shift and the best positive factor of the virtual vectors.

    It does not depend on their mean and scale, and is 0 where no factor above 0 helps.
    """
    real_UD, virtual_UD = real_UD - real_UD.mean(0), virtual_UD - virtual_UD.mean(0)
    product = np.square(real_UD).sum() * np.square(virtual_UD).sum()
    if not product > 0:
        return 0.0
    return float(np.maximum((real_UD * virtual_UD).sum(), 0) ** 2 / product)


def mean_cosine(real_UD: NDArray[Any], virtual_UD: NDArray[Any]) -> float:
    """Computes the mean over users of the cosine of both vectors, 0 where one of them is 0."""
    norms_U = np.linalg.norm(real_UD, axis=1) * np.linalg.norm(virtual_UD, axis=1)
    products_U = (real_UD * virtual_UD).sum(1)
    cosines_U = np.divide(products_U, norms_U, out=np.zeros_like(products_U), where=norms_U > 0)
    return float(cosines_U.mean())


def tsne_embedding(first_ND: NDArray[Any], second_MD: NDArray[Any]) -> tuple[Floats, Floats]:
    """Embeds both sets in one plane by t-SNE: ``[N, 2]`` and ``[M, 2]``.

    Perplexity 30; it begins at the first two principal components.
    """
    vectors = np.concatenate([first_ND, second_MD]).astype(np.float64)
    if not np.ptp(vectors, axis=0).any():
        # All points are equal: t-SNE would divide by their spread.
        places = np.zeros((len(vectors), 2))
    else:
        perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
        tsne = TSNE(init="pca", perplexity=perplexity, random_state=_SEED, n_jobs=1)
        places = tsne.fit_transform(vectors)
    return places[: len(first_ND)], places[len(first_ND) :]

"""Compares two sets of vectors by numbers and by a t-SNE embedding.

Shape letters: ``N``, ``M`` vectors of two sets; ``U`` users, of each of whom there is a real vector
and a virtual one; ``D`` elements.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mail_torchrec.metrics.auc import auc

_PERPLEXITY, _NUM_NEIGHBOURS, _NUM_FOLDS, _SEED = 30, 30, 5, 0

Floats = NDArray[np.float64]


def two_sample_auc(first_ND: NDArray[Any], second_MD: NDArray[Any]) -> float:
    """Computes the AUC of a classifier that discriminates two sets (Lopez-Paz and Oquab, 2017).

    It is .5 where both sets are of one distribution, and 1 where they do not overlap. The
    classifier is the share of the 30 nearest neighbours, elements standardised, cross-validated in
    5 folds. It sees differences in spread as well as in place, which a linear one does not.

    Args:
        first_ND: at least 10 vectors.
        second_MD: at least 10 vectors, independent of the first: not, say, the copies that a model
            made of these.
    """
    vectors = np.concatenate([first_ND, second_MD])
    labels = np.repeat([0, 1], [len(first_ND), len(second_MD)])
    folds = StratifiedKFold(_NUM_FOLDS, shuffle=True, random_state=_SEED)
    num_neighbours = min(_NUM_NEIGHBOURS, len(vectors) // 2)
    classifier = make_pipeline(StandardScaler(), KNeighborsClassifier(num_neighbours))
    scores = cross_val_predict(classifier, vectors, labels, cv=folds, method="predict_proba")
    return auc(scores[:, 1], labels)


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

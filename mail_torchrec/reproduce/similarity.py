"""How alike two sets of vectors are: by pictures (t-SNE), and by numbers, so that overlap is not only looked at.

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
    """AUC of a classifier that tells the two sets apart: .5 where they are of one distribution, 1 where they never meet.

    The classifier is the share of the 30 nearest neighbours, elements standardised, cross-validated
    in 5 folds (Lopez-Paz and Oquab, ICLR 2017). It sees differences in spread as well as in place,
    which a linear one does not.

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
    return auc(
        cross_val_predict(classifier, vectors, labels, cv=folds, method="predict_proba")[:, 1],
        labels,
    )


def explained_variance(real_UD: NDArray[Any], virtual_UD: NDArray[Any]) -> float:
    """R^2: 1 - |real - virtual|^2 / |real - mean|^2, over users and elements. Below 0 the mean of all users would be nearer."""
    return float(
        1 - np.square(real_UD - virtual_UD).sum() / np.square(real_UD - real_UD.mean(0)).sum()
    )


def explainable_variance(real_UD: NDArray[Any], virtual_UD: NDArray[Any]) -> float:
    """R^2 after the shift and the one factor that suit best: what is there but for its mean and its scale, 0 where nothing is."""
    real_UD, virtual_UD = real_UD - real_UD.mean(0), virtual_UD - virtual_UD.mean(0)
    product = np.square(real_UD).sum() * np.square(virtual_UD).sum()
    return float(np.maximum((real_UD * virtual_UD).sum(), 0) ** 2 / product) if product > 0 else 0.0


def mean_cosine(real_UD: NDArray[Any], virtual_UD: NDArray[Any]) -> float:
    """The mean over users of the cosine of the two vectors, 0 where one of them is 0."""
    lengths_U = np.linalg.norm(real_UD, axis=1) * np.linalg.norm(virtual_UD, axis=1)
    products_U = (real_UD * virtual_UD).sum(1)
    return float(
        np.divide(products_U, lengths_U, out=np.zeros_like(products_U), where=lengths_U > 0).mean()
    )


def on_a_plane(first_ND: NDArray[Any], second_MD: NDArray[Any]) -> tuple[Floats, Floats]:
    """Both sets in one t-SNE (perplexity 30, from the first two principal components): ``[N, 2]`` and ``[M, 2]``."""
    vectors = np.concatenate([first_ND, second_MD]).astype(np.float64)
    if not np.ptp(vectors, axis=0).any():  # one point, many times: t-SNE would divide by its spread
        places = np.zeros((len(vectors), 2))
    else:
        perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
        places = TSNE(
            init="pca", perplexity=perplexity, random_state=_SEED, n_jobs=1
        ).fit_transform(vectors)
    return places[: len(first_ND)], places[len(first_ND) :]

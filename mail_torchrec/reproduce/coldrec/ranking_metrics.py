"""Metrics of ColdRec: recall and NDCG at K of all items ranked for each user.

Shapes: ``U`` users, ``I`` items.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]

RANKING_METRICS = ("recall", "ndcg")


def ranking_metrics(
    scores_UI: Floats, is_positive_UI: Bools, is_masked_UI: Bools, k: int
) -> dict[str, Floats]:
    """Computes ``recall`` and ``ndcg`` of each user ``[U]``; nan for users without a positive item.

    The ideal ranking of NDCG has ``min(k, positives)`` hits; gains are ``1 / log2(rank + 1)``.

    Args:
        scores_UI: of each user and item.
        is_positive_UI: items that the user chose in the held-out pairs.
        is_masked_UI: items that are not ranked, those of the user's training pairs among them.
        k: length of the ranking.
    """
    is_positive_UI = is_positive_UI & ~is_masked_UI
    scores_UI = np.where(is_masked_UI, -np.inf, scores_UI)
    top_UK = np.argsort(-scores_UI, axis=1, kind="stable")[:, :k]
    is_hit_UK = np.take_along_axis(is_positive_UI, top_UK, axis=1)
    gains_K = 1 / np.log2(np.arange(top_UK.shape[1]) + 2)
    num_positive_U = is_positive_UI.sum(1)
    num_positive_U = np.where(num_positive_U > 0, num_positive_U, np.nan)
    best_UK = np.arange(len(gains_K)) < num_positive_U[:, None]  # hits of the ideal ranking
    return {
        "recall": is_hit_UK.sum(1) / num_positive_U,
        "ndcg": is_hit_UK @ gains_K / np.where(best_UK.any(1), best_UK @ gains_K, np.nan),
    }

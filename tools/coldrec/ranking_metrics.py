"""Metrics of ColdRec: recall and NDCG at K of all items ranked for each user.

Shapes: ``U`` users, ``I`` items.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def ranking_metrics(
    scores_UI: Floats, is_positive_UI: Bools, is_masked_UI: Bools, k: int
) -> dict[str, float]:
    """Computes ``recall`` and ``ndcg``, the means over the users with a positive item.

    The ideal ranking of NDCG has ``min(k, positives)`` hits; gains are ``1 / log2(rank + 1)``.

    Args:
        scores_UI: of each user and item.
        is_positive_UI: items that the user chose in the held-out pairs.
        is_masked_UI: items that are not ranked, those of the user's training pairs among them.
        k: length of the ranking.
    """
    has_positive_U = is_positive_UI.any(1)
    if not has_positive_U.any():
        return {"recall": float("nan"), "ndcg": float("nan")}
    scores_UI = np.where(is_masked_UI, -np.inf, scores_UI)[has_positive_U]
    is_positive_UI = (is_positive_UI & ~is_masked_UI)[has_positive_U]
    top_UK = np.argsort(-scores_UI, axis=1, kind="stable")[:, :k]
    is_hit_UK = np.take_along_axis(is_positive_UI, top_UK, axis=1)
    gains_K = 1 / np.log2(np.arange(top_UK.shape[1]) + 2)
    num_positive_U = is_positive_UI.sum(1)
    ideal_U = np.cumsum(gains_K)[np.minimum(num_positive_U, len(gains_K)) - 1]
    return {
        "recall": float((is_hit_UK.sum(1) / num_positive_U).mean()),
        "ndcg": float(((is_hit_UK * gains_K).sum(1) / ideal_U).mean()),
    }

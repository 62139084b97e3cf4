"""Losses of new items' generators in float64 numpy, written with loops and independently."""

from typing import Any

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]


def entropy(student: Reals, teacher: Reals) -> Reals:
    """Cross-entropy of two logits' sigmoids, the teacher's being the label."""
    label, share = 1 / (1 + np.exp(-teacher)), 1 / (1 + np.exp(-student))
    found: Reals = -(label * np.log(share) + (1 - label) * np.log(1 - share))
    return found


def item_info_nce(
    real: Reals, generated: Reals, ids: Any, is_counted: Any, temperature: float
) -> Reals:
    """InfoNCE of every row: its item's vectors against the mean score of each other item."""

    def score(one: int, other: int) -> float:
        norms = np.linalg.norm(real[one]) * np.linalg.norm(generated[other])
        return float(np.exp(real[one] @ generated[other] / norms / temperature))

    losses = []
    for row in range(len(real)):
        others = {ids[j] for j in range(len(ids)) if is_counted[j]} - {ids[row]}
        sums = [
            np.mean([score(row, j) for j in range(len(ids)) if ids[j] == item and is_counted[j]])
            for item in others
        ]
        losses.append(-np.log(score(row, row) / (score(row, row) + sum(sums))))
    return np.array(losses)

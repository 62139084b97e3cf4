"""Metrics of an evaluation by cohort: rows of new users, rows of old users, and all rows.

They are equal whatever the number of ranks that scored the rows.
"""

import math
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.metrics.auc import auc, gauc

__all__ = ["CohortMetrics", "ConversionScores", "auc", "compute_metrics", "gauc"]


class CohortMetrics(TypedDict):
    """Metrics of one cohort, ready for JSON; conversion metrics exist with conversion scores."""

    auc: float | None
    """None where one class is missing."""
    gauc: float | None
    """None where no user has both classes."""
    rows: int
    users: int
    cvr_auc: NotRequired[float | None]
    """pCVR on the clicked rows: converted or not."""
    cvr_gauc: NotRequired[float | None]
    ctcvr_auc: NotRequired[float | None]
    """pCTCVR on all rows: clicked and converted, or not."""
    ctcvr_gauc: NotRequired[float | None]


@dataclass(frozen=True)
class ConversionScores:
    """Scores of conversions: any monotone functions of the predicted probabilities."""

    labels: NDArray[Any]
    """1 where the row was clicked and converted, else 0, ``[rows]``."""
    cvr: NDArray[Any]
    """Scores of a conversion given a click, ``[rows]``."""
    ctcvr: NDArray[Any]
    """Scores of a click and a conversion, ``[rows]``."""


def compute_metrics(
    scores: NDArray[Any],
    labels: NDArray[Any],
    users: NDArray[Any],
    is_new: NDArray[Any],
    conversions: ConversionScores | None = None,
) -> dict[str, CohortMetrics]:
    """Computes the metrics of new users' rows, old users' rows and all rows.

    Args:
        scores: any monotone function of the predicted click probability, ``[rows]``.
        labels: 0 or 1, ``[rows]``.
        users: the row's user as an integer or a string, ``[rows]``.
        is_new: true on rows that are reported as new users', ``[rows]``.
        conversions: scores of conversions, where they are predicted too.

    Returns:
        ``{"new": {"auc", "gauc", "rows", "users"}, "old": ..., "all": ...}``, with conversions also
        ``cvr_auc`` and the others of :class:`CohortMetrics`; undefined metrics are None.

    Raises:
        ValueError: the shapes differ, a score is nan, or a label is neither 0 nor 1.
    """
    is_new = is_new.astype(np.bool_)
    if is_new.shape != scores.shape:
        raise ValueError(
            f"compute_metrics: is_new should have one entry a row, received shape {is_new.shape} "
            f"for {len(scores)} scores"
        )
    cohorts = {"new": is_new, "old": ~is_new, "all": np.ones_like(is_new)}
    metrics = {
        name: _click_metrics(scores[rows], labels[rows], users[rows])
        for name, rows in cohorts.items()
    }
    if conversions is not None:
        for name, rows in cohorts.items():
            clicked = rows & (labels == 1)
            _add_conversion_metrics(metrics[name], conversions, users, rows, clicked)
    return metrics


def _click_metrics(
    scores: NDArray[Any], labels: NDArray[Any], users: NDArray[Any]
) -> CohortMetrics:
    """Computes the click metrics of one cohort; arguments ``[rows of the cohort]``."""
    return CohortMetrics(
        auc=_or_none(auc(scores, labels)),
        gauc=_or_none(gauc(scores, labels, users)),
        rows=len(scores),
        users=len(np.unique(users)),
    )


def _add_conversion_metrics(
    metrics: CohortMetrics,
    found: ConversionScores,
    users: NDArray[Any],
    rows: NDArray[Any],
    clicked: NDArray[Any],
) -> None:
    """Adds the conversion metrics of one cohort; ``rows`` and ``clicked`` are masks ``[rows]``."""
    metrics.update(
        {
            "cvr_auc": _or_none(auc(found.cvr[clicked], found.labels[clicked])),
            "cvr_gauc": _or_none(gauc(found.cvr[clicked], found.labels[clicked], users[clicked])),
            "ctcvr_auc": _or_none(auc(found.ctcvr[rows], found.labels[rows])),
            "ctcvr_gauc": _or_none(gauc(found.ctcvr[rows], found.labels[rows], users[rows])),
        }
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value

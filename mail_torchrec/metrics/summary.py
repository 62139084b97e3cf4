"""What an evaluation reports: AUC and GAUC of new, old and all rows, equal whatever the number of ranks."""

import math
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.metrics.auc import auc, gauc

__all__ = ["Conversions", "Figures", "auc", "gauc", "report"]


class Figures(TypedDict):
    """The figures of one part of the rows, ready for JSON. Those of conversions are there where conversions are predicted."""

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
class Conversions:
    """Predictions of conversions; scores are any monotone function of the predicted probability."""

    labels: NDArray[Any]
    """1 where the row was clicked and converted, else 0, ``[rows]``."""
    cvr: NDArray[Any]
    """Scores of a conversion given a click, ``[rows]``."""
    ctcvr: NDArray[Any]
    """Scores of a click and a conversion, ``[rows]``."""


def report(
    scores: NDArray[Any],
    labels: NDArray[Any],
    users: NDArray[Any],
    is_new: NDArray[Any],
    conversions: Conversions | None = None,
) -> dict[str, Figures]:
    """The figures of new users' rows, old users' rows and all rows.

    Args:
        scores: any monotone function of the predicted probability, ``[rows]``.
        labels: 0 or 1, ``[rows]``.
        users: whose row it is: integers or strings, ``[rows]``.
        is_new: true on the rows of new users, ``[rows]``.
        conversions: where they are predicted too.

    Returns:
        ``{"new": {"auc", "gauc", "rows", "users"}, "old": ..., "all": ...}``, with conversions also
        ``cvr_auc`` and the others of :class:`Figures`; undefined figures are None.

    Raises:
        ValueError: the shapes differ, a score is nan, or a label is neither 0 nor 1.
    """
    is_new = is_new.astype(np.bool_)
    if is_new.shape != scores.shape:
        raise ValueError(
            f"report: is_new should have one entry a row, received shape {is_new.shape} for "
            f"{len(scores)} scores"
        )
    parts = {"new": is_new, "old": ~is_new, "all": np.ones_like(is_new)}
    figures = {
        name: _figures(scores[rows], labels[rows], users[rows]) for name, rows in parts.items()
    }
    if conversions is not None:
        for name, rows in parts.items():
            _add_conversions(figures[name], conversions, users, rows, rows & (labels == 1))
    return figures


def _figures(scores: NDArray[Any], labels: NDArray[Any], users: NDArray[Any]) -> Figures:
    return Figures(
        auc=_or_none(auc(scores, labels)),
        gauc=_or_none(gauc(scores, labels, users)),
        rows=len(scores),
        users=len(np.unique(users)),
    )


def _add_conversions(
    figures: Figures,
    found: Conversions,
    users: NDArray[Any],
    rows: NDArray[Any],
    clicked: NDArray[Any],
) -> None:
    figures.update(
        {
            "cvr_auc": _or_none(auc(found.cvr[clicked], found.labels[clicked])),
            "cvr_gauc": _or_none(gauc(found.cvr[clicked], found.labels[clicked], users[clicked])),
            "ctcvr_auc": _or_none(auc(found.ctcvr[rows], found.labels[rows])),
            "ctcvr_gauc": _or_none(gauc(found.ctcvr[rows], found.labels[rows], users[rows])),
        }
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value

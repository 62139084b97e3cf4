"""What an evaluation reports: AUC and GAUC of new, old and all rows, equal whatever the number of ranks."""

import math
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.auc import auc, gauc

__all__ = ["Figures", "auc", "gauc", "report"]


class Figures(TypedDict):
    """The figures of one part of the rows, ready for JSON."""

    auc: float | None
    """None where one class is missing."""
    gauc: float | None
    """None where no user has both classes."""
    rows: int
    users: int


def report(scores: NDArray[Any], labels: NDArray[Any], users: NDArray[Any], is_new: NDArray[Any]) -> dict[str, Figures]:
    """The figures of new users' rows, old users' rows and all rows.

    Args:
        scores: any monotone function of the predicted probability, ``[rows]``.
        labels: 0 or 1, ``[rows]``.
        users: whose row it is: integers or strings, ``[rows]``.
        is_new: true on the rows of new users, ``[rows]``.

    Returns:
        ``{"new": {"auc", "gauc", "rows", "users"}, "old": ..., "all": ...}``; undefined figures are None.

    Raises:
        ValueError: the shapes differ, a score is nan, or a label is neither 0 nor 1.
    """
    is_new = is_new.astype(np.bool_)
    if is_new.shape != scores.shape:
        raise ValueError(f"report: is_new should have one entry a row, received shape {is_new.shape} for {len(scores)} scores")
    parts = {"new": is_new, "old": ~is_new, "all": np.ones_like(is_new)}
    return {name: _figures(scores[rows], labels[rows], users[rows]) for name, rows in parts.items()}


def _figures(scores: NDArray[Any], labels: NDArray[Any], users: NDArray[Any]) -> Figures:
    return Figures(
        auc=_or_none(auc(scores, labels)),
        gauc=_or_none(gauc(scores, labels, users)),
        rows=len(scores),
        users=len(np.unique(users)),
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value

"""Scored rows of one batch of a rank.

Shape: ``B`` rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ScoredBatch:
    """Rows of one batch and their scores, without the row that only fills the batch up."""

    worker: int
    """Reader process that the batch came from: its batches hold consecutive rows."""
    rows: range
    """Numbers of the rows in the data, all files counted together."""
    probabilities: dict[str, NDArray[np.float32]]
    """Probabilities [B] by name, as a server of the model names them."""
    logits_B: NDArray[np.float32]
    """Logits of a click."""
    task_logits: dict[str, NDArray[np.float32]]
    """Logits [B] of the multi-task head: ``cvr`` and ``ctcvr``; empty without one."""
    labels_B: NDArray[np.float32]
    """1 where the row was clicked, else 0."""
    conversions_B: NDArray[np.float32]
    """1 where the row was clicked and converted, else 0."""
    users_B: NDArray[np.int64]
    """Hash of the group key."""
    is_new_B: NDArray[np.bool_]
    """Rows reported as new users'."""
    counts: NDArray[Any]
    """The reader's counts of the batch, [counts]."""

"""Scored rows of one batch of a rank.

Shape: ``B`` rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.towers.tasks.layout import TaskLayout


@dataclass(frozen=True)
class ScoredBatch:
    """Rows of one batch and their scores, without the row that only fills the batch up."""

    worker: int
    """Reader process that the batch came from: its batches hold consecutive rows."""
    rows: range
    """Numbers of the rows in the data, all files counted together."""
    scores: dict[str, NDArray[np.float32]]
    """Probabilities and expected values [B] by name, as a server of the model names them."""
    logits_B: NDArray[np.float32]
    """Logits of a click."""
    task_logits: dict[str, NDArray[np.float32]]
    """Predictions [B] of further tasks: logits, or logs of expected values; empty without any."""
    layout: TaskLayout
    """Meaning of these predictions."""
    task_targets: dict[str, NDArray[np.float32]]
    """What the predictions of ``model.tasks`` are compared with, [B], NaN where a row does not
    count."""
    labels_B: NDArray[np.float32]
    """1 where the row was clicked, else 0."""
    conversions_B: NDArray[np.float32]
    """1 where the row was clicked and converted, else 0."""
    users_B: NDArray[np.int64]
    """Hash of the group key."""
    is_new_B: NDArray[np.bool_]
    """Rows reported as new users'."""
    weights_B: NDArray[np.float32]
    """Weight of each row in metrics."""
    counts: NDArray[Any]
    """The reader's counts of the batch, [counts]."""
    is_new_item_B: NDArray[np.bool_] | None = None
    """Rows reported as new items'; None where nothing says which items are new."""

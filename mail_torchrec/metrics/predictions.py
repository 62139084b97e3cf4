"""The scores of an evaluation, row by row, as a file: what statistics over users need, and a mean cannot give."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """``R`` evaluated rows, in the order in which they were read (the files' order with one rank and at most one reader process)."""

    scores_R: NDArray[np.float32]
    """Logits."""
    labels_R: NDArray[np.uint8]
    users_R: NDArray[np.int64]
    """Whose row it is: a hash of the group key."""
    is_new_R: NDArray[np.bool_]
    """Rows reported as new users'."""

    @staticmethod
    def of(
        scores_R: NDArray[Any],
        labels_R: NDArray[Any],
        users_R: NDArray[Any],
        is_new_R: NDArray[Any],
    ) -> "Predictions":
        """The columns of an evaluation, in the types that the file has."""
        return Predictions(
            scores_R.astype(np.float32),
            labels_R.astype(np.uint8),
            users_R.astype(np.int64, copy=False),
            is_new_R.astype(np.bool_),
        )

    def save(self, path: Path) -> None:
        """Writes the columns as one compressed ``.npz``; the file is there whole or not at all."""
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez_compressed(
                file,
                scores=self.scores_R,
                labels=self.labels_R,
                users=self.users_R,
                is_new=self.is_new_R,
            )
        part.replace(path)

    @staticmethod
    def load(path: Path) -> "Predictions":
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: no such file, or not one of these.
        """
        try:
            with np.load(path, allow_pickle=False) as columns:
                return Predictions(
                    *(columns[name] for name in ("scores", "labels", "users", "is_new"))
                )
        except (OSError, KeyError, EOFError, ValueError, BadZipFile) as error:
            raise ValueError(
                f"'{path}' should hold a run's predictions ({error}); train the run with "
                "train.save_predictions=true, or write "
                "the file with mail-torchrec evaluate --predictions"
            ) from error

    def part(self, *, is_new: bool) -> Self:
        """The rows of new users, or those of old ones."""
        rows = self.is_new_R == is_new
        return type(self)(
            self.scores_R[rows], self.labels_R[rows], self.users_R[rows], self.is_new_R[rows]
        )

"""Scores of an evaluation, row by row, in a file: the input of statistics over users."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """Columns of ``R`` evaluated rows, in the order in which they were read.

    That is the order of the files with one rank and at most one reader process.
    """

    scores_R: NDArray[np.float32]
    """Logits of a click."""
    labels_R: NDArray[np.uint8]
    """1 where the row was clicked, else 0."""
    users_R: NDArray[np.int64]
    """Hash of the group key: rows of one user have one value."""
    is_new_R: NDArray[np.bool_]
    """Rows reported as new users'."""

    @staticmethod
    def from_columns(
        scores_R: NDArray[Any],
        labels_R: NDArray[Any],
        users_R: NDArray[Any],
        is_new_R: NDArray[Any],
    ) -> "Predictions":
        """Casts the columns of an evaluation to the types of the file."""
        return Predictions(
            scores_R.astype(np.float32),
            labels_R.astype(np.uint8),
            users_R.astype(np.int64, copy=False),
            is_new_R.astype(np.bool_),
        )

    def save(self, path: Path) -> None:
        """Writes the columns as one compressed ``.npz``, atomically."""
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
            ValueError: there is no such file, or it holds something else.
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

    def cohort(self, *, is_new: bool) -> Self:
        """Selects the rows of new users, or those of old users."""
        rows = self.is_new_R == is_new
        return type(self)(
            self.scores_R[rows], self.labels_R[rows], self.users_R[rows], self.is_new_R[rows]
        )

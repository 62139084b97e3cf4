"""Scores of an evaluation in a file, row by row in the order of the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.utils.run_files import atomic_file


@dataclass(frozen=True)
class Predictions:
    """Columns of ``R`` evaluated rows, in the order of the data.

    That is the files in the order of their names, the rows of each in its own order, whatever the
    number of ranks and reader processes that scored them.
    """

    rows_R: NDArray[np.int64]
    """Number of each row in the data, from 0, all files counted together."""
    scores_R: NDArray[np.float32]
    """Logits of a click."""
    labels_R: NDArray[np.uint8]
    """1 where the row was clicked, else 0."""
    users_R: NDArray[Any]
    """Group key as the files have it, int64 or string: rows of one user have one value."""
    is_new_R: NDArray[np.bool_]
    """Rows reported as new users'."""

    @staticmethod
    def from_columns(
        scores_R: NDArray[Any],
        labels_R: NDArray[Any],
        users_R: NDArray[Any],
        is_new_R: NDArray[Any],
    ) -> "Predictions":
        """Casts the columns of all rows, in the order of the data, to the types of the file."""
        return Predictions(
            np.arange(len(scores_R)),
            scores_R.astype(np.float32),
            labels_R.astype(np.uint8),
            users_R,
            is_new_R.astype(np.bool_),
        )

    def save(self, path: Path) -> None:
        """Writes the columns as one compressed ``.npz``, atomically."""
        with atomic_file(path) as file:
            np.savez_compressed(
                file,
                rows=self.rows_R,
                scores=self.scores_R,
                labels=self.labels_R,
                users=self.users_R,
                is_new=self.is_new_R,
            )

    @staticmethod
    def load(path: Path) -> "Predictions":
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: there is no such file, or it holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as columns:
                return Predictions(
                    *(columns[name] for name in ("rows", "scores", "labels", "users", "is_new"))
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
            self.rows_R[rows],
            self.scores_R[rows],
            self.labels_R[rows],
            self.users_R[rows],
            self.is_new_R[rows],
        )

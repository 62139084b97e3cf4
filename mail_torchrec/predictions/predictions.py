"""Predictions of an evaluation, read for comparisons: scores, labels, users and cohorts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mail_torchrec.data.parquet.files import parquet_files
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.predictions.writer import IS_NEW, IS_NEW_ITEM, LABEL, LOGIT, USER


@dataclass(frozen=True)
class Predictions:
    """Columns of ``R`` evaluated rows, in the order of the data.

    That is the files in the order of their names, the rows of each in its own order, whatever the
    number of ranks and reader processes that scored them.
    """

    scores_R: NDArray[np.float32]
    """Logits of a click."""
    labels_R: NDArray[np.uint8]
    """1 where the row was clicked, else 0."""
    users_R: NDArray[Any]
    """Group key, int64 or string: rows of one user have one value."""
    is_new_R: NDArray[np.bool_]
    """Rows reported as new users', or as new items'."""

    @staticmethod
    def load(folder: Path, *, of_items: bool = False) -> "Predictions":
        """Reads the predictions that an evaluation wrote.

        Args:
            folder: of the predictions.
            of_items: read which rows are new items', in place of new users'.

        Raises:
            ValueError: there is no such folder, or it holds something else.
        """
        remedy = (
            "train the run with train.save_predictions=true, or write the folder with "
            "mail-torchrec evaluate --predictions"
        )
        if not folder.exists() and (old := folder.with_suffix(".npz")).exists():
            raise ValueError(
                f"'{old}' holds predictions in the form of an earlier version; write them anew as "
                f"Parquet: mail-torchrec evaluate --run-dir {folder.parent} --predictions {folder}"
            )
        is_new = IS_NEW_ITEM if of_items else IS_NEW
        columns = [LOGIT, LABEL, USER, is_new]
        try:
            tables = []
            for file in parquet_files(str(folder), "name the folder of the predictions"):
                file.check_columns(columns)
                tables.append(file.read(columns))
            table = pa.concat_tables(tables)
            users = plain_ids(table[USER], file=str(folder), name=USER)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"'{folder}' should hold an evaluation's predictions ({error}); {remedy}"
            ) from error
        return Predictions.from_columns(
            table[LOGIT].to_numpy(),
            table[LABEL].to_numpy(),
            _array(users),
            table[is_new].to_numpy(),
        )

    @staticmethod
    def from_columns(
        scores_R: NDArray[Any],
        labels_R: NDArray[Any],
        users_R: NDArray[Any],
        is_new_R: NDArray[Any],
    ) -> "Predictions":
        """Casts the columns of all rows, in the order of the data, to their types."""
        return Predictions(
            scores_R.astype(np.float32),
            labels_R.astype(np.uint8),
            users_R,
            is_new_R.astype(np.bool_),
        )

    def cohort(self, *, is_new: bool) -> Self:
        """Selects the rows of new users (or items), or those of old ones."""
        rows = self.is_new_R == is_new
        return type(self)(
            self.scores_R[rows], self.labels_R[rows], self.users_R[rows], self.is_new_R[rows]
        )


def _array(users: pa.Array) -> NDArray[Any]:
    values: NDArray[Any] = users.to_numpy(zero_copy_only=False)
    return values.astype(str) if values.dtype == object else values

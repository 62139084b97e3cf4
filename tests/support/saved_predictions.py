"""Predictions of made-up rows, in the form in which an evaluation writes them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mail_torchrec.predictions.predictions import Predictions


def save_predictions(
    rows: Predictions, folder: Path, is_new_item_R: NDArray[np.bool_] | None = None
) -> None:
    folder.mkdir()
    columns = {
        "user": rows.users_R,
        "label": rows.labels_R,
        "is_new": rows.is_new_R,
        "logit": rows.scores_R,
    } | ({} if is_new_item_R is None else {"is_new_item": is_new_item_R})
    pq.write_table(pa.table(columns), folder / "part-000000000000000.parquet")

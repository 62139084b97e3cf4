"""Predictions of made-up rows, in the form in which an evaluation writes them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mail_torchrec.predictions.predictions import Predictions


def save_predictions(rows: Predictions, folder: Path) -> None:
    folder.mkdir()
    columns = {
        "user": rows.users_R,
        "label": rows.labels_R,
        "is_new": rows.is_new_R,
        "logit": rows.scores_R,
    }
    pq.write_table(pa.table(columns), folder / "part-000000000000000.parquet")

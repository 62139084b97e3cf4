"""Calibration of an exported model, fitted on rows that the run was not trained or tested on."""

import numpy as np

from mail_torchrec.calibration.calibrator import Calibration, Method
from mail_torchrec.calibration.fitting import calibrate
from mail_torchrec.checkpoint.data_record import DataRecord, read_data_record
from mail_torchrec.data.source import Source
from mail_torchrec.predict.opened_run import finished_config, open_run
from mail_torchrec.train.evaluation import score_batches
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)


def fit_calibration(run_dir: RunDir, method: Method, data: str | None) -> Calibration:
    """Scores rows as ``evaluate`` does, in this process, and fits a calibration on them.

    Args:
        run_dir: a finished run.
        method: platt or isotonic.
        data: Parquet file or folder (or URI); None takes the run's validation rows.

    Raises:
        ValueError: there are no such rows, or too few; they are the run's training or test rows; or
            the model ranks them no better than chance.
    """
    config = finished_config(run_dir, [])
    if data is None and config.data.validation is None:
        raise ValueError(
            "--calibrate needs rows that the run was neither trained nor tested on, and it has no "
            "data.validation; give --calibration-data a Parquet file or folder"
        )
    with open_run(run_dir, data, config, validation=True) as run:
        if data is not None:
            _check_other_rows(run.source, read_data_record(run_dir.data))
        reader = run.data.reader
        batches = list(score_batches(run.assembled, reader, run.data.loader, "calibrate"))
    logits, labels, users, weights = (
        np.concatenate([getattr(batch, name) for batch in batches])
        for name in ("logits_B", "labels_B", "users_B", "weights_B")
    )
    found = calibrate(
        method,
        logits,
        labels,
        users,
        reader.negatives_kept,
        weights if reader.has_weights else None,
    )
    logger.info(
        "%s calibration on %d rows with %d clicks of %s: predicted over observed clicks %.4f "
        "before and %.4f after, log loss %.5f before and %.5f after (after: of each half of the "
        "users by the other half)",
        method,
        found.rows,
        found.clicks,
        reader.path,
        found.before.calibration,
        found.after.calibration,
        found.before.log_loss,
        found.after.log_loss,
    )
    return found


def _check_other_rows(source: Source, recorded: DataRecord) -> None:
    """Refuses the files that the run was trained or tested on."""
    own = {file.content for file in source.fingerprints}
    for part in ("train", "test"):
        same = [file.name for file in getattr(recorded, part).files if file.content in own]
        if same:
            raise ValueError(
                f"--calibration-data '{source.path}' holds {part} rows of the run ('{same[0]}'"
                + (f" and {len(same) - 1} more" if same[1:] else "")
                + "); their metrics would say nothing about a calibration that was fitted on them, "
                "so give rows that it has not seen"
            )

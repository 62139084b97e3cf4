"""The ``mail-torchrec predict`` command: probabilities of unlabelled rows, to be joined by row."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.predict.opened_run import finished_config, open_run
from mail_torchrec.predictions.writer import (
    PredictionFormat,
    check_predictions_folder,
    write_predictions,
)
from mail_torchrec.train.data_splits import log_counts, reduce_counts
from mail_torchrec.train.evaluation import score_batches, score_names
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.spans import span

_COUNTS = ("unknown/", "cut/")
"""Kinds of counts that do not depend on labels and users, which are not read."""


def predict(
    run_dir: RunDir,
    data: str,
    out: Path,
    overrides: list[str],
    keep: Sequence[str] = (),
    *,
    overwrite: bool = False,
) -> int:
    """Writes the probabilities of all rows of files; every rank calls it, on any number of ranks.

    Labels and users are not read. The simulated cold start hides nobody, as a server does not,
    unless overrides configure it.

    Args:
        run_dir: a finished run.
        data: Parquet file or folder (or URI).
        out: folder to write.
        overrides: of its configuration.
        keep: columns of the files to keep beside those of group ``passthrough``.
        overwrite: replace predictions that are there.

    Returns:
        Number of rows.

    Raises:
        ValueError: no finished run there, data that does not fit its schema, a column that cannot
            be kept, or a folder that may not be written.
    """
    check_predictions_folder(out, overwrite=overwrite)
    config = finished_config(run_dir, overrides)
    if not any(override.startswith("data.cold_start") for override in overrides):
        config = _without_cold_start(config)
    groups = [Group.LABEL, Group.CONVERSION, Group.TASK_LABEL, Group.WEIGHT]
    if not config.data.cold_start.of_test.hide_share:  # which hides users by their keys and days
        groups += [Group.GROUP_KEY, Group.DAY]
    schema = config.schema_
    kept = {name: schema.file_column(name) for name in schema.names(Group.PASSTHROUGH)}
    with open_run(run_dir, data, config, schema.names(*groups)) as run:
        output = PredictionFormat(
            score_names(config), {**kept, **{name: name for name in keep}}, origin=run.origin
        )
        reader, counts = run.data.reader, np.zeros(len(run.data.reader.count_names), np.int64)
        with (
            span("prediction"),
            write_predictions(out, run.source, output, overwrite=overwrite) as writer,
        ):
            for batch in score_batches(run.assembled, reader, run.data.loader, "predict"):
                writer.write(batch)
                counts += batch.counts
        found = reduce_counts(reader, torch.from_numpy(counts).to(run.assembled.device))
        log_counts(
            run.source.path,
            {name: count for name, count in found.items() if name.startswith(_COUNTS)},
        )
        return run.source.num_rows


def _without_cold_start(config: Config) -> Config:
    data = config.data.model_copy(update={"cold_start": ColdStartSettings()})
    return config.model_copy(update={"data": data})

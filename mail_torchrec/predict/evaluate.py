"""The ``mail-torchrec evaluate`` command: metrics of a finished run on labelled rows."""

from pathlib import Path
from typing import Any

from mail_torchrec.metrics.details import DetailedMetrics
from mail_torchrec.predict.opened_run import finished_config, open_run
from mail_torchrec.train.data_splits import log_counts, warn_without_new_rows
from mail_torchrec.train.evaluation import evaluate, writing_predictions
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.spans import span


def evaluate_run(
    run_dir: RunDir,
    data: str | None,
    overrides: list[str],
    predictions: Path | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluates a finished run, on its own test data or other files; on any number of ranks.

    Args:
        run_dir: the run.
        data: Parquet file or folder (or URI) instead of its test data.
        overrides: of its configuration.
        predictions: folder for the scores of all rows; None writes none.
        overwrite: replace predictions that are there.

    Returns:
        Metrics by cohort, as in metrics.json; ``by`` has those of the columns of ``metrics.by``.

    Raises:
        ValueError: no finished run there, data that does not fit its schema, or predictions that
            may not be written.
    """
    with open_run(run_dir, data, finished_config(run_dir, overrides)) as run:
        writing = writing_predictions(
            predictions, run.source, run.config, run.origin, overwrite=overwrite
        )
        detailed = DetailedMetrics(run.source, run.config.schema_, run.config.metrics)
        with span("evaluation"), writing as on_batch:
            found = evaluate(run.assembled, run.data.reader, run.data.loader, on_batch, detailed)
        log_counts(run.source.path, found.counts)
        num_new, num_rows = (found.metrics[cohort]["rows"] for cohort in ("new", "all"))
        warn_without_new_rows(run.config, run.source.path, num_new, num_rows)
        by = {"by": found.details["by"]} if run.config.metrics.by and found.details else {}
        return {**found.metrics, **by}

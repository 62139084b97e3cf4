"""Beginning of a run: its directory is opened, its encoders are fitted."""

import json

from mail_torchrec.config import Config, load_config
from mail_torchrec.data.column_types import ColumnTypes, save_column_types
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.list_shapes import ListShapes
from mail_torchrec.data.new_users import NewUserCounter
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import broadcast_from_rank_0
from mail_torchrec.metrics.cohorts import CohortMetrics
from mail_torchrec.train.data_splits import open_sources
from mail_torchrec.train.evaluation import warn_without_new_rows
from mail_torchrec.train.resume import check_finished
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.spans import span

logger = get_logger(__name__)


def open_run(
    config: Config, run_dir: RunDir, resume: bool, from_scratch: bool
) -> dict[str, CohortMetrics] | None:
    """Opens the run directory; returns the metrics of a run that has nothing left to train.

    Raises:
        ValueError: the directory holds a run that is not to be resumed, or a finished one of
            another configuration or other data.
    """
    run_dir.open(resume=resume, from_scratch=from_scratch)
    if not run_dir.metrics.exists() or (metrics := _read_metrics(run_dir)) is None:
        return None
    epochs = load_config(run_dir.config, []).train.epochs
    if config.train.epochs > epochs:
        return None
    check_finished(config, run_dir, *open_sources(config))
    logger.info(
        "the run in '%s' is finished, with %d epochs; these are its metrics", run_dir.path, epochs
    )
    return metrics


def _read_metrics(run_dir: RunDir) -> dict[str, CohortMetrics] | None:
    """Reads the metrics of a finished run; None where they are damaged."""
    try:
        metrics: dict[str, CohortMetrics] = json.loads(run_dir.metrics.read_text())
    except ValueError as error:
        logger.warning("'%s' is damaged, the run is evaluated anew: %s", run_dir.metrics, error)
        return None
    return metrics


def fit_run_encoders(config: Config, source: Source, types: ColumnTypes, run_dir: RunDir) -> None:
    """Fits the encoders on rank 0, and writes them and the columns' types to the run directory."""

    def fit() -> None:
        new_users, shapes = NewUserCounter(config.data), ListShapes(config.schema_)
        with span("reading", reads=True):
            encoders = fit_encoders(
                source,
                config.schema_,
                config.data.cold_start,
                observers=[new_users, shapes],
                progress=True,
            )
        encoders.save(run_dir.vocabularies)
        save_column_types(types, run_dir.vocabularies)
        for warning in shapes.warnings():
            logger.warning("'%s': %s", source.path, warning)
        warn_without_new_rows(config, source.path, new_users.num_new, source.num_rows)

    with span("fitting the vocabularies"):
        broadcast_from_rank_0(fit)

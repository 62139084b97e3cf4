"""Evaluation: scores all rows of a data split batch by batch, and computes metrics by cohort.

Shape: ``B`` rows of a batch.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mail_torchrec.checkpoint.data_record import DataRecord, ScoredRows
from mail_torchrec.config import Config
from mail_torchrec.data.items.new_items import has_new_items
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import rank
from mail_torchrec.metrics.cohorts import CohortMetrics, EvaluatedRows, MetricsReport
from mail_torchrec.metrics.details import DetailedMetrics, MetricsDetails, write_details
from mail_torchrec.model.step import StepOutputs
from mail_torchrec.predictions.evaluated_rows import Columns, evaluated_rows, metric_columns
from mail_torchrec.predictions.scored_batch import ScoredBatch
from mail_torchrec.predictions.writer import PredictionFormat, write_predictions
from mail_torchrec.reporting.loss_curves import draw_loss_curves
from mail_torchrec.towers.multi_task import CONVERSION_TASKS
from mail_torchrec.towers.outputs import CLICK_TASK, probability_name
from mail_torchrec.towers.tasks.layout import TaskLayout, task_specs
from mail_torchrec.train.assembly import AssembledModel
from mail_torchrec.train.data_splits import Sources, reduce_counts
from mail_torchrec.train.resume import CHECKPOINT
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.steps import TimedBatches, run_steps
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.progress import progress_bar
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.spans import span

logger = get_logger(__name__)


class Evaluation(NamedTuple):
    """Metrics and counts of scored rows, the same on every rank."""

    metrics: dict[str, CohortMetrics]
    """By cohort."""
    counts: dict[str, int]
    """The reader's counts (unknown ids, cut lists) by name."""
    rows: ScoredRows
    details: MetricsDetails | None
    """None where they were not asked for."""


def evaluate(
    assembled: AssembledModel,
    reader: Reader,
    loader: Iterable[Batch],
    on_batch: Callable[[ScoredBatch], None] | None = None,
    detailed: DetailedMetrics | None = None,
) -> Evaluation:
    """Scores the rows of all ranks; every rank calls it.

    Args:
        assembled: a model on its ranks.
        reader: of the rows.
        loader: of the reader.
        on_batch: called with each scored batch of this rank, such as the method ``write`` of a
            :class:`~mail_torchrec.predictions.writer.PredictionWriter`.
        detailed: computes metrics by column, of tenths and of constants too; None for cohorts
            alone.
    """
    scored = score_rows(assembled, reader, loader, on_batch)
    rows, users = scored.rows, scored.rows.users_R
    checksums = ScoredRows.of(rows.labels_R, users, rows.is_new_R)
    if detailed is None:
        return Evaluation(MetricsReport.of(rows).cohorts, scored.counts, checksums, None)
    metrics, details = detailed.compute(rows, scored.numbers)
    return Evaluation(metrics, scored.counts, checksums, details)


class ScoredData(NamedTuple):
    """Scored rows of this rank."""

    rows: EvaluatedRows
    numbers: list[range]
    """Numbers of the rows in the data, in the order of the files."""
    counts: dict[str, int]
    """The reader's counts, over all ranks."""


def score_rows(
    assembled: AssembledModel,
    reader: Reader,
    loader: Iterable[Batch],
    on_batch: Callable[[ScoredBatch], None] | None = None,
) -> ScoredData:
    """Scores the rows of all ranks; arguments as those of :func:`evaluate`."""
    columns: list[Columns] = []
    numbers: list[range] = []
    layout = TaskLayout()
    counts = np.zeros(len(reader.count_names), np.int64)
    for batch in score_batches(assembled, reader, loader):
        if on_batch is not None:
            on_batch(batch)
        columns.append(metric_columns(batch))
        layout = batch.layout
        numbers.append(batch.rows)
        counts += batch.counts
    own = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    summed = reduce_counts(reader, torch.from_numpy(counts).to(assembled.device))
    return ScoredData(evaluated_rows(own, layout, reader), numbers, summed)


@torch.no_grad()
def score_batches(
    assembled: AssembledModel, reader: Reader, loader: Iterable[Batch], name: str = "evaluate"
) -> Iterator[ScoredBatch]:
    """Scores this rank's rows, in the order of its batches; every rank iterates to the end.

    Args:
        assembled: a model on its ranks; it is in evaluation mode meanwhile.
        reader: of the rows, unshuffled.
        loader: of the reader.
        name: of the progress bar.
    """
    batch_rows = reader.batch_rows()
    with (
        assembled.evaluating(),
        progress_bar(desc=name, unit="step", total=len(reader), disable=rank() != 0) as bar,
    ):
        for outputs in run_steps(assembled.pipeline, TimedBatches(loader)):
            worker, rows = next(batch_rows)
            yield _scored(outputs, worker, rows)
            bar.update()


def score_names(config: Config) -> tuple[str, ...]:
    """Returns the names of the probabilities and expected values that a run predicts, in order."""
    tasks = (CLICK_TASK, *(CONVERSION_TASKS if config.model.multi_task is not None else ()))
    further = task_specs(config.model.tasks)
    return (*map(probability_name, tasks), *(spec.name for spec in further))


def detailed_metrics(config: Config, sources: Sources) -> DetailedMetrics:
    """Makes what computes the metrics of test rows, see :class:`DetailedMetrics`."""
    return DetailedMetrics(sources.test, config.schema_, config.metrics, sources.train)


@contextmanager
def writing_predictions(
    folder: Path | None,
    source: Source,
    config: Config,
    origin: Mapping[str, str] | None = None,
    *,
    overwrite: bool = True,
) -> Iterator[Callable[[ScoredBatch], None] | None]:
    """Yields the function that writes the rows of an evaluation, for :func:`evaluate` to call.

    Args:
        folder: to write; None yields None.
        source: of the rows.
        config: of the run.
        origin: names of the run and its checkpoint; by default of the run.
        overwrite: replace predictions that are there.

    Raises:
        ValueError: the folder may not be written, or a column cannot be kept.
    """
    if folder is None:
        yield None
        return
    output = evaluation_format(config, origin)
    with write_predictions(folder, source, output, overwrite=overwrite) as writer:
        yield writer.write


def evaluation_format(config: Config, origin: Mapping[str, str] | None = None) -> PredictionFormat:
    """Returns the columns that an evaluation writes of each row.

    Args:
        config: of the run.
        origin: names of the run and its checkpoint; by default of the run.
    """
    schema = config.schema_
    return PredictionFormat(
        score_names(config),
        {name: schema.file_column(name) for name in schema.names(Group.PASSTHROUGH)},
        schema.file_column(schema.group_key),
        schema.conversion is not None,
        has_new_items(schema, config.data.new_items, config.data.cold_start.items),
        origin or {"run": config.name},
    )


def write_results(
    config: Config, run_dir: RunDir, sources: Sources, found: Evaluation, best_step: int | None
) -> None:
    """Writes plot and metrics, and the step of the weights where validation rows chose it.

    A plot that cannot be written is no reason to lose the metrics.
    """
    try:
        draw_loss_curves([run_dir.log], run_dir.curves)
    except (OSError, ValueError) as error:
        logger.warning("the loss curves could not be drawn: %s", error)
    write_details(found.details, run_dir.path)
    DataRecord.of(*sources, found.rows).write(run_dir.data)
    chosen = {CHECKPOINT: {"step": best_step}} if best_step is not None else {}
    metrics = json.dumps(dict(found.metrics) | chosen, indent=2) + "\n"
    run_dir.record_results(metrics, has_predictions=config.train.save_predictions)
    write_file(run_dir.metrics, metrics)


@span("results", collective=True)
def _scored(outputs: StepOutputs, worker: int, rows: range) -> ScoredBatch:
    """Copies the scores of a step to the host, without those of the row that fills it up."""
    batch = outputs.batch

    def real(values_B: Tensor) -> NDArray[Any]:
        return np.asarray(values_B[: len(rows)].cpu())  # such a row is the last one

    scores = outputs.layout.scores(outputs.logits_B, outputs.tasks)
    scored = ScoredBatch(
        worker=worker,
        rows=rows,
        scores={name: real(values) for name, values in scores.items()},
        logits_B=real(outputs.logits_B),
        task_logits={name: real(values) for name, values in outputs.tasks.items()},
        layout=outputs.layout,
        task_targets={name: real(values) for name, values in outputs.targets.items()},
        labels_B=real(batch.labels_B),
        conversions_B=real(batch.conversions_B),
        users_B=real(batch.users_B),
        is_new_B=real(batch.is_new_B),
        weights_B=real(batch.weights_B),
        counts=batch.counts.cpu().numpy(),
        is_new_item_B=None if batch.is_new_item_B is None else real(batch.is_new_item_B),
    )
    num_filled = len(batch.labels_B) - len(rows)
    assert num_filled in (0, 1) and not batch.weights_B[len(rows) :].any(), (
        "the rows of a batch are not those of its step"
    )
    return scored

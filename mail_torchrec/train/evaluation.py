"""Evaluation: scores all rows of a data split batch by batch, and computes metrics by cohort.

Shape: ``B`` rows of a batch.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mail_torchrec.calibration.negatives import logits_of_sample, product_logits
from mail_torchrec.checkpoint.data_record import ScoredRows
from mail_torchrec.config import Config
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import rank
from mail_torchrec.metrics.cohorts import (
    CohortMetrics,
    ConversionScores,
    EvaluatedRows,
    MetricsReport,
)
from mail_torchrec.metrics.details import DetailedMetrics, MetricsDetails
from mail_torchrec.model.step import StepOutputs
from mail_torchrec.predictions.scored_batch import ScoredBatch
from mail_torchrec.predictions.writer import PredictionFormat, write_predictions
from mail_torchrec.towers.multi_task import CONVERSION_TASKS
from mail_torchrec.towers.outputs import CLICK_TASK, probability_name
from mail_torchrec.train.assembly import AssembledModel
from mail_torchrec.train.data_splits import TimedBatches, reduce_counts
from mail_torchrec.train.steps import run_steps
from mail_torchrec.utils.progress import progress_bar


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
    loader: "DataLoader[Batch]",
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
    columns: list[list[NDArray[Any]]] = []
    numbers: list[range] = []
    counts = np.zeros(len(reader.count_names), np.int64)
    for batch in score_batches(assembled, reader, loader):
        if on_batch is not None:
            on_batch(batch)
        columns.append(_columns(batch))
        numbers.append(batch.rows)
        counts += batch.counts
    own = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
    summed = reduce_counts(reader, torch.from_numpy(counts).to(assembled.device))
    rows, checksums = _evaluated_rows(own, reader), ScoredRows.of(*own[1:4])
    if detailed is None:
        return Evaluation(MetricsReport.of(rows).cohorts, summed, checksums, None)
    metrics, details = detailed.compute(rows, numbers)
    return Evaluation(metrics, summed, checksums, details)


@torch.no_grad()
def score_batches(
    assembled: AssembledModel, reader: Reader, loader: "DataLoader[Batch]", name: str = "evaluate"
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


def probability_names(config: Config) -> tuple[str, ...]:
    """Returns the names of the probabilities that a run predicts, as :func:`probabilities` has."""
    tasks = (CLICK_TASK, *(CONVERSION_TASKS if config.model.multi_task is not None else ()))
    return tuple(map(probability_name, tasks))


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
        probability_names(config),
        {name: schema.file_column(name) for name in schema.names(Group.PASSTHROUGH)},
        schema.file_column(schema.group_key),
        schema.conversion is not None,
        origin or {"run": config.name},
    )


def probabilities(outputs: StepOutputs) -> dict[str, Tensor]:
    """Returns the probabilities [B] of a step by name, as an exported model names them."""
    logits = {CLICK_TASK: outputs.logits_B, **outputs.tasks}
    return {probability_name(task): torch.sigmoid(logits_B) for task, logits_B in logits.items()}


def _scored(outputs: StepOutputs, worker: int, rows: range) -> ScoredBatch:
    """Copies the scores of a step to the host, without those of the row that fills it up."""
    batch = outputs.batch
    is_real_B = batch.weights_B > 0

    def real(values_B: Tensor) -> NDArray[Any]:
        array: NDArray[Any] = values_B[is_real_B].cpu().numpy()
        return array

    scored = ScoredBatch(
        worker=worker,
        rows=rows,
        probabilities={name: real(values) for name, values in probabilities(outputs).items()},
        logits_B=real(outputs.logits_B),
        task_logits={name: real(values) for name, values in outputs.tasks.items()},
        labels_B=real(batch.labels_B),
        conversions_B=real(batch.conversions_B),
        users_B=real(batch.users_B),
        is_new_B=real(batch.is_new_B),
        counts=batch.counts.cpu().numpy(),
    )
    assert len(scored.logits_B) == len(rows), "the rows of a batch are not those of its step"
    return scored


def _columns(batch: ScoredBatch) -> list[NDArray[Any]]:
    """Lists the columns [B] that metrics need.

    These are scores, labels, users and new-user flags; where conversions are predicted, the
    fields of :class:`ConversionScores` follow.
    """
    columns: list[NDArray[Any]] = [batch.logits_B, batch.labels_B, batch.users_B, batch.is_new_B]
    if batch.task_logits:
        columns += [batch.conversions_B, batch.task_logits["cvr"], batch.task_logits["ctcvr"]]
    return columns


def _evaluated_rows(own: list[NDArray[Any]], reader: Reader) -> EvaluatedRows:
    """Names this rank's columns [rows] of :func:`_columns`.

    Where the rows are downsampled, the logits are of such rows, which their labels follow.
    """
    scores, labels, users, is_new, *conversions = own
    if (kept := reader.negatives_kept) != 1:
        scores = logits_of_sample(scores, kept)
        if conversions:
            conversions[2] = product_logits(scores, conversions[1])
    conversion_scores = ConversionScores(*conversions) if conversions else None
    return EvaluatedRows(
        scores,
        labels,
        users,
        is_new,
        conversion_scores,
        training_shift=reader.training_shift,
    )

"""Evaluation: scores all rows of a data split, and computes AUC and GAUC by cohort."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from mail_torchrec.config import load_config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import gather_rows, rank
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.metrics.cohorts import CohortMetrics, ConversionScores, compute_metrics
from mail_torchrec.metrics.predictions import Predictions
from mail_torchrec.model.step import StepOutputs
from mail_torchrec.train.assembly import AssembledModel, assemble
from mail_torchrec.train.data_splits import (
    DataSplit,
    TimedBatches,
    load_split,
    log_counts,
    reduce_counts,
)
from mail_torchrec.train.resume import newest_intact_checkpoint
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.state import load_model
from mail_torchrec.train.steps import run_steps
from mail_torchrec.utils.progress import progress_bar
from mail_torchrec.utils.spans import span


def evaluate(
    assembled: AssembledModel,
    reader: Reader,
    loader: "DataLoader[Batch]",
    predictions: Path | None = None,
) -> tuple[dict[str, CohortMetrics], dict[str, int]]:
    """Scores the rows of all ranks; every rank calls it.

    Args:
        assembled: a model on its ranks.
        reader: of the rows.
        loader: of the reader.
        predictions: file for the scores of all rows, written by rank 0; None writes none.

    Returns:
        The metrics by cohort, and the reader's counts (unknown ids, cut lists) by name; the same
        on every rank.
    """
    columns, counts = _score_rows(assembled, reader, loader)
    scores, labels, users, is_new, *conversions = (
        gather_rows(column).cpu().numpy() for column in columns
    )
    if predictions is not None and rank() == 0:
        Predictions.from_columns(scores, labels, users, is_new).save(predictions)
    conversion_scores = ConversionScores(*conversions) if conversions else None
    metrics = compute_metrics(scores, labels, users, is_new, conversion_scores)
    return metrics, reduce_counts(reader, counts)


def _score_rows(
    assembled: AssembledModel, reader: Reader, loader: "DataLoader[Batch]"
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Scores this rank's rows; returns the columns [rows] and the reader's counts [counts]."""
    assembled.model.eval()
    columns: list[list[torch.Tensor]] = []
    counts = torch.zeros(len(reader.count_names), dtype=torch.int64, device=assembled.device)
    with (
        torch.no_grad(),
        progress_bar(desc="evaluate", unit="step", total=len(reader), disable=rank() != 0) as bar,
    ):
        for outputs in run_steps(assembled.pipeline, TimedBatches(loader)):
            is_real_B = outputs.batch.weights_B > 0
            columns.append([values[is_real_B] for values in _columns(outputs)])
            counts += outputs.batch.counts
            bar.update()
    assembled.model.train()
    return [torch.cat(parts) for parts in zip(*columns, strict=True)], counts


def evaluate_run(
    run_dir: RunDir, data: str | None, overrides: list[str], predictions: Path | None = None
) -> dict[str, CohortMetrics]:
    """Evaluates a finished run, on its own test data or other files; on any number of ranks.

    Args:
        run_dir: the run.
        data: Parquet file or folder (or URI) instead of its test data.
        overrides: of its configuration.
        predictions: file for the scores of all rows; None writes none.

    Raises:
        ValueError: no finished run there, or data that does not fit its schema.
    """
    with open_finished_run(run_dir, data, overrides) as (assembled, test_data):
        with span("evaluation"):
            metrics, counts = evaluate(assembled, test_data.reader, test_data.loader, predictions)
        log_counts(test_data.reader.path, counts)
        return metrics


@contextmanager
def open_finished_run(
    run_dir: RunDir, data: str | None, overrides: list[str]
) -> Iterator[tuple[AssembledModel, DataSplit]]:
    """Yields the model of a finished run with its weights, and the rows to evaluate.

    Arguments and errors are those of :func:`evaluate_run`.
    """
    run_dir.check_trained()
    config = load_config(run_dir.config, overrides)
    with process_group(config.train.device, config.train.timeout) as device:
        source = Source(data or config.data.path(config.data.test), config.schema_)
        encoders = Encoders.load(run_dir.vocabularies, config.schema_)
        assembled = assemble(config, encoders, device)
        folder = newest_intact_checkpoint(run_dir.checkpoints)
        assert folder is not None
        load_model(assembled, folder)
        feature_tables = assembled.feature_tables
        yield assembled, load_split(config, encoders, feature_tables, source, training=False)


def _columns(outputs: StepOutputs) -> list[torch.Tensor]:
    """Lists the columns [B] of an evaluation step.

    These are scores, labels, users and new-user flags; where conversions are predicted, the
    fields of :class:`ConversionScores` follow.
    """
    batch = outputs.batch
    columns = [outputs.logits_B, batch.labels_B, batch.users_B, batch.is_new_B]
    if outputs.tasks:
        columns += [batch.conversions_B, outputs.tasks["cvr"], outputs.tasks["ctcvr"]]
    return columns

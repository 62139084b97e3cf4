"""Evaluation: scores all rows of a data split, and computes AUC and GAUC by cohort."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from mail_torchrec.checkpoint.data_record import ScoredRows
from mail_torchrec.config import load_config
from mail_torchrec.data.column_types import load_column_types
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.chunk import user_hashes
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import broadcast_from_rank_0, gather_rows, rank
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
    warn_without_new_rows,
)
from mail_torchrec.train.resume import check_vocabularies, newest_intact_checkpoint
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.state import load_model
from mail_torchrec.train.steps import run_steps
from mail_torchrec.utils.progress import progress_bar
from mail_torchrec.utils.spans import span


class Evaluation(NamedTuple):
    """Scored rows, their metrics and counts, the same on every rank."""

    metrics: dict[str, CohortMetrics]
    """By cohort."""
    counts: dict[str, int]
    """The reader's counts (unknown ids, cut lists) by name."""
    rows: ScoredRows


def evaluate(
    assembled: AssembledModel,
    reader: Reader,
    loader: "DataLoader[Batch]",
    predictions: Path | None = None,
) -> Evaluation:
    """Scores the rows of all ranks; every rank calls it.

    Args:
        assembled: a model on its ranks.
        reader: of the rows.
        loader: of the reader.
        predictions: file for the scores of all rows, written by rank 0; None writes none. The
            group keys are read once more for it.
    """
    columns, counts = _score_rows(assembled, reader, loader)
    order = np.argsort(reader.row_numbers())
    scores, labels, users, is_new, *conversions = (
        gather_rows(column).cpu().numpy()[order] for column in columns
    )
    if predictions is not None:
        broadcast_from_rank_0(
            lambda: Predictions.from_columns(
                scores, labels, _raw_users(reader, users), is_new
            ).save(predictions)
        )
    conversion_scores = ConversionScores(*conversions) if conversions else None
    metrics = compute_metrics(scores, labels, users, is_new, conversion_scores)
    rows = ScoredRows(labels, users, is_new)
    return Evaluation(metrics, reduce_counts(reader, counts), rows)


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


def _raw_users(reader: Reader, hashes: NDArray[np.int64]) -> NDArray[Any]:
    """Reads the users of the scored rows as the files have them, int64 or string, [rows].

    Args:
        reader: of the rows.
        hashes: hash of each scored row's user, in the order of the data, [rows].

    Raises:
        ValueError: the files hold other rows by now.
    """
    users = reader.group_keys()
    if not np.array_equal(user_hashes(users), hashes):
        raise ValueError(
            f"'{reader.path}' was rewritten while its rows were scored: its group keys are other "
            "ones now; evaluate again"
        )
    values: NDArray[Any] = users.to_numpy()
    return values.astype(str) if values.dtype == object else values


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
            found = evaluate(assembled, test_data.reader, test_data.loader, predictions)
        log_counts(test_data.reader.path, found.counts)
        config = load_config(run_dir.config, overrides)
        num_new, num_rows = (found.metrics[cohort]["rows"] for cohort in ("new", "all"))
        warn_without_new_rows(config, test_data.reader.path, num_new, num_rows)
        return found.metrics


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
        folder = newest_intact_checkpoint(run_dir.checkpoints)
        assert folder is not None
        broadcast_from_rank_0(partial(check_vocabularies, folder, run_dir))
        types = load_column_types(run_dir.vocabularies)
        with span("opening the data", reads=True):
            source = Source(
                data or config.data.path(config.data.test),
                config.schema_,
                types,
                "give --data a Parquet file or folder",
            )
        encoders = Encoders.load(run_dir.vocabularies, config.schema_)
        assembled = assemble(config, encoders, device)
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

"""Trains the variants of this project and the direct reference step by step on the same rows."""

import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.source import Source
from mail_torchrec.metrics.auc import auc
from mail_torchrec.train.assembly import assemble, config_feature_tables
from mail_torchrec.train.data_splits import DataSplit, load_split
from mail_torchrec.train.evaluation import evaluate
from mail_torchrec.train.steps import TimedBatches, run_steps
from mail_torchrec.utils.spans import span
from tools.benchmark.reference.model import Reference
from tools.benchmark.reference.padded_batch import pad_batch
from tools.benchmark.workload import UNGROUPED, Variant, Workload

REFERENCE = "reference"
"""Name of the direct reference in tables."""


class BenchmarkTrainer(Protocol):
    """Trains step by step."""

    name: str
    input: "TimedInput"

    def step(self) -> int:
        """Trains on one batch, and returns its number of rows."""


class TimedInput:
    """Yields batches without end, epoch after epoch, and sums the time waited for them.

    Args:
        split: the reader of the training rows and its loader.
    """

    def __init__(self, split: DataSplit) -> None:
        self.split, self.seconds = split, 0.0
        self._batches = self._all_epochs()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        with span("input"):
            batch = next(self._batches)
        self.seconds += time.perf_counter() - start
        return batch

    def _all_epochs(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            self.split.reader.set_epoch(epoch, followed=True)
            yield from self.split.loader
            epoch += 1


def fit_training_encoders(config: Config) -> Encoders:
    """Fits the encoders on the training rows."""
    source = Source(config.data.path(config.data.train), config.schema_)
    return fit_encoders(source, config.schema_, config.data.cold_start)


def workload_encoders(workload: Workload) -> Encoders:
    """Reads a workload's encoders, or fits them where it has none."""
    config = workload.config()
    if workload.vocabularies is None:
        return fit_training_encoders(config)
    return Encoders.load(workload.vocabularies, config.schema_)


def load_data(config: Config, encoders: Encoders, *, training: bool) -> DataSplit:
    """Opens the training or the test rows as the trainer does."""
    part = config.data.train if training else config.data.test
    source = Source(config.data.path(part), config.schema_)
    return load_split(config, encoders, config_feature_tables(config), source, training=training)


class ProjectTrainer:
    """Trains a variant of this project, assembled as in a run.

    Args:
        workload: data, columns, towers.
        variant: its overrides.
        device: of this process.
        encoders: fitted on the training rows.
    """

    def __init__(
        self, workload: Workload, variant: Variant, device: torch.device, encoders: Encoders
    ) -> None:
        self.name, self.config, self.encoders = variant.name, workload.config(variant), encoders
        self.assembled = assemble(self.config, encoders, device)
        self.assembled.model.train()
        self.input = TimedInput(load_data(self.config, encoders, training=True))

    def step(self) -> int:
        """Trains on one batch, and returns its number of rows."""
        return len(self.assembled.pipeline.progress(self.input).batch)

    def epoch(self, number: int) -> Iterator[int]:
        """Trains an epoch to its end, so that the pipeline holds no batch back.

        It must not be mixed with :meth:`step`.

        Yields:
            The number of rows of each step.
        """
        split = self.input.split
        split.reader.set_epoch(number)
        for outputs in run_steps(self.assembled.pipeline, TimedBatches(split.loader)):
            yield len(outputs.batch)

    def auc(self) -> float:
        """Computes the AUC of all test rows."""
        split = load_data(self.config, self.encoders, training=False)
        metrics = evaluate(self.assembled, split.reader, split.loader).metrics
        return float(metrics["all"]["auc"] or float("nan"))


class ReferenceTrainer:
    """Trains the direct reference with dense Adams, on ungrouped rows from the same reader.

    Args:
        workload: data, columns, towers.
        device: of this process.
        encoders: fitted on the training rows.
    """

    name = REFERENCE

    def __init__(self, workload: Workload, device: torch.device, encoders: Encoders) -> None:
        self.config = workload.config(UNGROUPED.with_overrides("data.group_by_user=false"))
        self.encoders, self.device = encoders, device
        self.feature_tables = config_feature_tables(self.config)
        torch.manual_seed(self.config.train.seed)
        self.model = Reference(self.config, encoders.num_rows).to(device).train()
        self.optimizers = self._build_optimizers()
        self.input = TimedInput(load_data(self.config, encoders, training=True))

    def step(self) -> int:
        """Trains on one batch, and returns its number of rows."""
        return self._train(next(self.input))

    def epoch(self, number: int) -> Iterator[int]:
        """Trains an epoch; yields the number of rows of each step."""
        split = self.input.split
        split.reader.set_epoch(number)
        for batch in split.loader:
            yield self._train(batch)

    @torch.no_grad()
    def auc(self) -> float:
        """Computes the AUC of all test rows."""
        self.model.eval()
        scores: list[NDArray[Any]] = []
        labels: list[NDArray[Any]] = []
        for batch in load_data(self.config, self.encoders, training=False).loader:
            rows = pad_batch(batch.to(self.device), self.config.schema_, self.feature_tables)
            scores.append(self.model(rows)[0].cpu().numpy())
            labels.append(batch.labels_B.numpy())
        self.model.train()
        return auc(np.concatenate(scores), np.concatenate(labels))

    def _build_optimizers(self) -> list[torch.optim.Optimizer]:
        """Builds an Adam for the tables and DMR, and one for the zero-shot tower."""
        zero_shot = list(self.model.zero_shot.parameters()) if self.model.zero_shot else []
        own = set(zero_shot)
        ranking = [parameter for parameter in self.model.parameters() if parameter not in own]
        settings = self.config.train
        options = {"lr": settings.learning_rate, "betas": settings.betas, "eps": settings.eps}
        groups = [ranking, zero_shot] if zero_shot else [ranking]
        return [torch.optim.Adam(group, **options) for group in groups]

    def _train(self, batch: Batch) -> int:
        batch = batch.to(self.device)
        rows = pad_batch(batch, self.config.schema_, self.feature_tables)
        _, losses = self.model(rows)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        total = self.model.total_loss(losses)
        with span("backward"):
            total.backward()
        with span("optimizer"):
            for optimizer in self.optimizers:
                optimizer.step()
        return len(batch)


def make_trainer(
    workload: Workload, variant: Variant | None, device: torch.device, encoders: Encoders
) -> ProjectTrainer | ReferenceTrainer:
    """Makes the trainer of a variant, or for None the direct reference."""
    if variant is None:
        return ReferenceTrainer(workload, device, encoders)
    return ProjectTrainer(workload, variant, device, encoders)

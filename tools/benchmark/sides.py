"""What is compared: the trainer in its variants and the direct reference, each trained step by step on the same rows."""

import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders, fit_encoders
from mail_torchrec.data.parquet.source import Source
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.metrics.auc import auc
from mail_torchrec.train.assembly import assemble, feature_tables_of
from mail_torchrec.train.evaluation import Batches, evaluate, outputs
from mail_torchrec.train.loop import Loaded
from mail_torchrec.train.trainer import load
from tools.benchmark.padded import padded
from tools.benchmark.reference import Reference
from tools.benchmark.setting import UNGROUPED, Setting, Variant

REFERENCE = "reference"
"""The name of side (b)."""


class Side(Protocol):
    """Something that trains."""

    name: str
    input: "Input"

    def step(self) -> int:
        """Trains on a batch; its rows."""


class Input:
    """Batches without end, epoch after epoch, and the time waited for them."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.seconds = loaded, 0.0
        self._batches = self._forever()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.take()

    def take(self) -> Batch:
        """The next batch."""
        start = time.perf_counter()
        batch = next(self._batches)
        self.seconds += time.perf_counter() - start
        return batch

    def _forever(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            self.loaded.reader.set_epoch(epoch, followed=True)
            yield from self.loaded.loader
            epoch += 1


def encoders_of(config: Config) -> Encoders:
    """What the training rows teach."""
    return fit_encoders(
        Source(config.data.path(config.data.train), config.schema_),
        config.schema_,
        config.data.cold_start,
    )


def loaded(config: Config, encoders: Encoders, *, training: bool) -> Loaded:
    """The reader and its loader, as the trainer makes them."""
    source = Source(
        config.data.path(config.data.train if training else config.data.test), config.schema_
    )
    return load(config, encoders, feature_tables_of(config), source, training=training)


class Trainer:
    """Side (a): this project, put together as a run does it.

    Args:
        setting: data, columns, towers.
        variant: what differs.
        device: this process's.
        encoders: of the training rows.
    """

    def __init__(
        self, setting: Setting, variant: Variant, device: torch.device, encoders: Encoders
    ) -> None:
        self.name, self.config, self.encoders = variant.name, setting.config(variant), encoders
        self.assembled = assemble(self.config, encoders, device)
        self.assembled.model.train()
        self.input = Input(loaded(self.config, encoders, training=True))

    def step(self) -> int:
        """Trains on a batch; its rows."""
        return len(self.assembled.pipeline.progress(self.input).batch)

    def epoch(self, number: int) -> Iterator[int]:
        """Trains an epoch to its end, so that the pipeline holds no batch back; the rows of each step. Not to be mixed with ``step``."""
        data = self.input.loaded
        data.reader.set_epoch(number)
        for output in outputs(self.assembled, Batches(data.loader)):
            yield len(output.batch)

    def auc(self) -> float:
        """Of all test rows."""
        data = loaded(self.config, self.encoders, training=False)
        figures, _ = evaluate(self.assembled, data.reader, data.loader)
        return float(figures["all"]["auc"] or float("nan"))


class DirectReference:
    """Side (b): ``reference.py`` with dense Adams, on ungrouped rows from the same reader."""

    name = REFERENCE

    def __init__(self, setting: Setting, device: torch.device, encoders: Encoders) -> None:
        self.config, self.encoders, self.device = (
            setting.config(UNGROUPED.with_settings("data.group_by_user=false")),
            encoders,
            device,
        )
        self.feature_tables = feature_tables_of(self.config)
        torch.manual_seed(self.config.train.seed)
        self.model = Reference(self.config, encoders.num_rows).to(device).train()
        zero_shot = (
            set(self.model.zero_shot.parameters()) if self.model.zero_shot is not None else set()
        )
        ranking = [parameter for parameter in self.model.parameters() if parameter not in zero_shot]
        groups = [ranking, *([list(zero_shot)] if zero_shot else [])]
        settings = self.config.train
        self.optimizers = [
            torch.optim.Adam(
                group, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps
            )
            for group in groups
        ]
        self.input = Input(loaded(self.config, encoders, training=True))

    def step(self) -> int:
        """Trains on a batch; its rows."""
        return self._train(next(self.input))

    def epoch(self, number: int) -> Iterator[int]:
        """Trains an epoch; the rows of each step."""
        data = self.input.loaded
        data.reader.set_epoch(number)
        for batch in data.loader:
            yield self._train(batch)

    def _train(self, batch: Batch) -> int:
        batch = batch.to(self.device)
        rows = padded(batch, self.config.schema_, self.feature_tables)
        _, losses = self.model(rows)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.model.total(losses).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return len(batch)

    @torch.no_grad()
    def auc(self) -> float:
        """Of all test rows."""
        self.model.eval()
        scores: list[NDArray[Any]] = []
        labels: list[NDArray[Any]] = []
        for batch in loaded(self.config, self.encoders, training=False).loader:
            rows = padded(batch.to(self.device), self.config.schema_, self.feature_tables)
            scores.append(self.model(rows)[0].cpu().numpy())
            labels.append(batch.labels_B.numpy())
        self.model.train()
        return auc(np.concatenate(scores), np.concatenate(labels))


def side_of(
    setting: Setting, variant: Variant | None, device: torch.device, encoders: Encoders
) -> Trainer | DirectReference:
    """A variant of the trainer, or for None the reference."""
    return (
        DirectReference(setting, device, encoders)
        if variant is None
        else Trainer(setting, variant, device, encoders)
    )

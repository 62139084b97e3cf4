"""Scores of a whole data set -> AUC and GAUC for new, old and all rows."""

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.distributed.collectives import gather_rows, rank
from mail_torchrec.metrics.predictions import Predictions
from mail_torchrec.metrics.summary import Conversions, Figures, report
from mail_torchrec.model.mail import Outputs
from mail_torchrec.train.assembly import Assembled
from mail_torchrec.utils.logging import bar_interval
from mail_torchrec.utils.spans import span


class Batches:
    """The batches of a loader, and how long they were waited for."""

    def __init__(self, loader: "DataLoader[Batch]") -> None:
        self._loader, self._batches, self._waited = loader, iter(()), 0.0
        self._is_begun = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            with span("reading"):
                if not self._is_begun:
                    self._batches, self._is_begun = iter(self._loader), True
                return next(self._batches)
        finally:
            self._waited += time.perf_counter() - start

    def waited(self) -> float:
        """Seconds since this was last asked."""
        waited, self._waited = self._waited, 0.0
        return waited


def outputs(assembled: Assembled, batches: Iterator[Batch], first: int = 1) -> Iterator[Outputs]:
    """Runs the pipeline over batches, in training or evaluation as the model stands; steps are called ``first``, ``first + 1``, ..."""
    for step in count(first):
        with span(f"step {step}"):
            try:
                output = assembled.pipeline.progress(batches)
            except StopIteration:
                return
        assert assembled.is_pipelined(), (
            "a table collection was not prefetched for: was its input changed before the call?"
        )
        yield output


def evaluate(
    assembled: Assembled,
    reader: Reader,
    loader: "DataLoader[Batch]",
    predictions: Path | None = None,
) -> tuple[dict[str, Figures], dict[str, int]]:
    """Scores the rows of all ranks.

    Args:
        assembled: a model on its ranks.
        reader: of the rows.
        loader: of the reader.
        predictions: the file for the scores of all rows, written by rank 0; None writes none.

    Returns:
        The figures, and what the reader met on the way (unknown ids, cut lists); the same on every
        rank.
    """
    assembled.model.eval()
    columns: list[list[torch.Tensor]] = []
    counts = torch.zeros(len(reader.count_names), dtype=torch.int64, device=assembled.device)
    with (
        torch.no_grad(),
        tqdm(
            total=len(reader),
            desc="evaluate",
            unit="step",
            disable=rank() != 0,
            leave=False,
            mininterval=bar_interval(),
        ) as bar,
    ):
        for output in outputs(assembled, Batches(loader)):
            is_real_B = output.batch.weights_B > 0
            columns.append([values[is_real_B] for values in _columns(output)])
            counts += output.batch.counts
            bar.update()
    assembled.model.train()
    scores, labels, users, is_new, *conversions = (
        gather_rows(torch.cat(part)).cpu().numpy() for part in zip(*columns, strict=True)
    )
    if predictions is not None and rank() == 0:
        Predictions.of(scores, labels, users, is_new).save(predictions)
    return report(
        scores, labels, users, is_new, Conversions(*conversions) if conversions else None
    ), total_counts(reader, counts)


def _columns(output: Outputs) -> list[torch.Tensor]:
    """Scores, labels, users, who is reported as new; then what :class:`Conversions` holds, where they are predicted."""
    batch = output.batch
    columns = [output.logits_B, batch.labels_B, batch.users_B, batch.is_new_B]
    return columns + (
        [batch.conversions_B, output.tasks["cvr"], output.tasks["ctcvr"]] if output.tasks else []
    )


def total_counts(reader: Reader, counts: torch.Tensor) -> dict[str, int]:
    """Counts of all ranks by name, zeros left out."""
    summed: Any = gather_rows(counts.unsqueeze(0)).sum(0).tolist()
    return {
        name: int(count) for name, count in zip(reader.count_names, summed, strict=True) if count
    }

"""Scores of a whole data set -> AUC and GAUC for new, old and all rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from mail_torchrec.collectives import gather_rows, rank
from mail_torchrec.data.batch import Batch
from mail_torchrec.data.reader import Reader
from mail_torchrec.model import Outputs
from mail_torchrec.train.assembly import Assembled
from mail_torchrec.train.metrics import Figures, report
from mail_torchrec.train.predictions import Predictions
from mail_torchrec.train.progress import bar_interval


def outputs(assembled: Assembled, loader: "DataLoader[Batch]") -> Iterator[Outputs]:
    """Runs the pipeline over a loader, in training or evaluation as the model stands."""
    batches = iter(loader)
    while True:
        try:
            output = assembled.pipeline.progress(batches)
        except StopIteration:
            return
        assert assembled.is_pipelined(), "a table collection was not prefetched for: was its input changed before the call?"
        yield output


def evaluate(
    assembled: Assembled, reader: Reader, loader: "DataLoader[Batch]", predictions: Path | None = None
) -> tuple[dict[str, Figures], dict[str, int]]:
    """Scores the rows of all ranks.

    Args:
        assembled: a model on its ranks.
        reader: of the rows.
        loader: of the reader.
        predictions: the file for the scores of all rows, written by rank 0; None writes none.

    Returns:
        The figures, and what the reader met on the way (unknown ids, cut lists); the same on every rank.
    """
    assembled.model.eval()
    columns: list[list[torch.Tensor]] = [[], [], [], []]  # scores, labels, users, who is reported as new
    counts = torch.zeros(len(reader.count_names), dtype=torch.int64, device=assembled.device)
    with (
        torch.no_grad(),
        tqdm(total=len(reader), desc="evaluate", unit="step", disable=rank() != 0, leave=False, mininterval=bar_interval()) as bar,
    ):
        for output in outputs(assembled, loader):
            batch = output.batch
            for column, values in zip(columns, (output.logits_B, batch.labels_B, batch.users_B, batch.is_cold_B), strict=True):
                column.append(values[batch.weights_B > 0])
            counts += batch.counts
            bar.update()
    assembled.model.train()
    scores, labels, users, is_cold = (gather_rows(torch.cat(column)).cpu().numpy() for column in columns)
    if predictions is not None and rank() == 0:
        Predictions.of(scores, labels, users, is_cold).save(predictions)
    return report(scores, labels, users, is_cold), total_counts(reader, counts)


def total_counts(reader: Reader, counts: torch.Tensor) -> dict[str, int]:
    """Counts of all ranks by name, zeros left out."""
    summed: Any = gather_rows(counts.unsqueeze(0)).sum(0).tolist()
    return {name: int(count) for name, count in zip(reader.count_names, summed, strict=True) if count}

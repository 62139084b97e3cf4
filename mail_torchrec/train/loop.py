"""The loop: steps, what is recorded of them, checkpoints on the way, and the stop when one is asked for."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from mail_torchrec.checkpoint.manifest import Manifest, Progressed, Rank
from mail_torchrec.checkpoint.saver import Saver
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import Position
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.distributed.collectives import rank, world_size
from mail_torchrec.distributed.preemption import EXIT_CODE, StopSignal
from mail_torchrec.train.assembly import Assembled
from mail_torchrec.train.evaluation import Batches, outputs, total_counts
from mail_torchrec.train.progress import Progress
from mail_torchrec.train.state import state_of
from mail_torchrec.utils.spans import span


@dataclass
class Loaded:
    """A reader and the loader that runs it."""

    reader: Reader
    loader: "DataLoader[Batch]"


Describe = Callable[[int, Position, Progressed, list[Rank]], Manifest]
"""Step, position, progress and what the ranks counted -> what a checkpoint says of itself."""


@dataclass
class Loop:
    """Trains from a position to the end of the last epoch, and saves on the way."""

    assembled: Assembled
    data: Loaded
    progress: Progress
    saver: Saver
    stop: StopSignal
    describe: Describe
    num_epochs: int
    every: int
    """Steps between two checkpoints; 0 for none on the way."""

    def run(self, position: Position, counts: list[int]) -> None:
        """Trains; the last checkpoint is there when it returns.

        Args:
            position: where to begin.
            counts: what this rank met in the epoch before that, in the order of
                ``Reader.count_names``; empty at its beginning.

        Raises:
            SystemExit: the run was told to stop, and is saved.
        """
        self._taken, self._counts = position.taken, self._zeros()
        if counts:
            self._counts += torch.tensor(counts, device=self._counts.device)
        self._position = position
        for epoch in range(position.epoch, self.num_epochs):
            with span(f"training, epoch {epoch + 1}"):
                self._epoch(epoch)
            self._position, self._counts = Position(epoch=epoch + 1), self._zeros()
        self._save(wait=True)
        if self.stop.is_due_now():
            self._leave()

    def _epoch(self, epoch: int) -> None:
        reader = self.data.reader
        reader.set_epoch(epoch, self._position.taken, followed=epoch + 1 < self.num_epochs)
        batches = Batches(self.data.loader)
        steps = (
            outputs(self.assembled, batches, self.progress.num_done + 1)
            if reader.steps_left
            else ()
        )
        for done, output in enumerate(steps, start=1):
            self.progress.step(output.losses, len(output.batch), batches.waited())
            self._counts += output.batch.counts
            self._position = Position(epoch=epoch, taken=reader.taken(done))
            if self.stop.is_due():
                self._save(wait=True)
                self._leave()
            if self.every and self.progress.num_done % self.every == 0:
                self._save()
        named = total_counts(reader, self._counts)
        self.progress.event({"epoch": epoch + 1, "counts": named})
        say_counts(f"epoch {epoch + 1}", named)

    def _save(self, *, wait: bool = False) -> None:
        step, position, progressed = (
            self.progress.num_done,
            self._position,
            self.progress.progressed(),
        )
        mine = Rank(losses=self.progress.sums(), counts=self._counts.tolist())
        with span("saving a checkpoint", patient=True):
            self.saver.save(
                step,
                state_of(self.assembled),
                mine,
                lambda ranks: self.describe(step, position, progressed, ranks),
                wait=wait,
            )

    def _leave(self) -> None:
        if rank() == 0:
            tqdm.write(
                f"told to stop: saved after step {self.progress.num_done}; --resume goes on from "
                "there",
                file=sys.stderr,
            )
        raise SystemExit(EXIT_CODE)

    def _zeros(self) -> torch.Tensor:
        return torch.zeros(
            len(self.data.reader.count_names), dtype=torch.int64, device=self.assembled.device
        )


def counted(ranks: list[Rank]) -> Rank:
    """What this rank goes on counting from: its own, or its part of what other ranks counted."""
    if len(ranks) == world_size():
        return ranks[rank()]
    # The loss of a step is the mean of the ranks' shares; counts are sums.
    losses = {
        name: sum(part.losses[name] for part in ranks) / len(ranks) for name in ranks[0].losses
    }
    counts = [sum(column) for column in zip(*(part.counts for part in ranks), strict=True)]
    return Rank(losses=losses, counts=counts if rank() == 0 else [])


_MET = {
    "unknown": ("ids outside the vocabulary, looked up in row 0", ""),
    "cut": ("lists cut to their newest max_length entries", " rows"),
    "distinct": ("different users of each batch, summed up", ""),
    "states": (
        "states of these users (attributes and behaviours), each computed once for its rows of a "
        "batch",
        "",
    ),
    "unclicked": ("conversions without a click, which count as none", " rows"),
}
"""Kind of count -> what to say of it, and its unit."""


def say_counts(where: str, counts: dict[str, int]) -> None:
    """What was met in the data that a person should know of."""
    for kind, (what, unit) in _MET.items():
        found = [
            f"{name.partition('/')[2]} {count:,}{unit}"
            for name, count in counts.items()
            if name.startswith(f"{kind}/")
        ]
        if found and rank() == 0:
            tqdm.write(f"{where}: {what}: {', '.join(found)}", file=sys.stderr)

"""Training loop: epochs of steps, records, checkpoints, and the stop on preemption."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mail_torchrec.checkpoint.manifest import CheckpointManifest, LogPosition, RankProgress
from mail_torchrec.checkpoint.saver import CheckpointSaver
from mail_torchrec.checkpoint.writer import Snapshot
from mail_torchrec.data.reading.partition import DataPosition
from mail_torchrec.distributed.preemption import EXIT_CODE, PreemptionHandler
from mail_torchrec.model.step import StepOutputs
from mail_torchrec.train.assembly import AssembledModel
from mail_torchrec.train.data_splits import DataSplit, TimedBatches, log_counts, reduce_counts
from mail_torchrec.train.metrics_writer import MetricsWriter
from mail_torchrec.train.state import run_state
from mail_torchrec.train.steps import run_steps
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.spans import span

logger = get_logger(__name__)

ManifestFactory = Callable[[int, DataPosition, LogPosition, list[RankProgress]], CheckpointManifest]
"""Makes a manifest from step, data position, log position and the progress of all ranks."""


@dataclass
class TrainingLoop:
    """Trains from a position to the end of the last epoch, and saves checkpoints meanwhile."""

    assembled: AssembledModel
    data: DataSplit
    writer: MetricsWriter
    saver: CheckpointSaver
    preemption: PreemptionHandler
    make_manifest: ManifestFactory
    documents: dict[str, str]
    """File name -> text of the files that each checkpoint holds beside the tensors."""
    num_epochs: int
    save_every: int
    """Steps between two checkpoints; 0 saves at the end alone."""

    def run(self, position: DataPosition, counts: list[int]) -> None:
        """Trains; the last checkpoint is published when it returns.

        Args:
            position: in the training data, where to begin.
            counts: this rank's counts of the epoch before that position, in the order of
                ``Reader.count_names``; empty at the beginning of an epoch.

        Raises:
            SystemExit: the run was preempted, and is saved.
        """
        self._position, self._counts = position, self._zero_counts()
        if counts:
            self._counts += torch.tensor(counts, device=self._counts.device)
        for epoch in range(position.epoch, self.num_epochs):
            with span(f"training, epoch {epoch + 1}"):
                self._run_epoch(epoch)
            self._position, self._counts = DataPosition(epoch=epoch + 1), self._zero_counts()
        self._save(wait=True)
        if self.preemption.should_stop_after_last_step():
            self._exit_preempted()

    def _run_epoch(self, epoch: int) -> None:
        """Runs what is left of an epoch, and records the reader's counts."""
        reader = self.data.reader
        reader.set_epoch(epoch, self._position.consumed, followed=epoch + 1 < self.num_epochs)
        if reader.steps_left:
            batches = TimedBatches(self.data.loader)
            steps = run_steps(self.assembled.pipeline, batches, self.writer.num_done + 1)
            for done, outputs in enumerate(steps, start=1):
                self._position = DataPosition(epoch=epoch, consumed=reader.consumed(done))
                self._after_step(outputs, batches.waited())
        counts = reduce_counts(reader, self._counts)
        self.writer.write_event({"epoch": epoch + 1, "counts": counts})
        log_counts(f"epoch {epoch + 1}", counts)

    def _after_step(self, outputs: StepOutputs, waited: float) -> None:
        """Records a step; saves where a checkpoint is due, and stops where the run must."""
        self.writer.record_step(outputs.losses, len(outputs.batch), waited)
        self._counts += outputs.batch.counts
        if self.preemption.should_stop():
            self._save(wait=True)
            self._exit_preempted()
        if self.save_every and self.writer.num_done % self.save_every == 0:
            self._save()

    def _save(self, *, wait: bool = False) -> None:
        """Saves a checkpoint of the current state.

        Args:
            wait: whether to return only when it is published, and to fail without it.
        """
        step, position, log_position = (
            self.writer.num_done,
            self._position,
            self.writer.position(),
        )
        snapshot = Snapshot(
            step,
            run_state(self.assembled),
            RankProgress(losses=self.writer.loss_sums(), counts=self._counts.tolist()),
            lambda ranks: self.make_manifest(step, position, log_position, ranks),
            self.documents,
        )
        with span("saving a checkpoint", patient=True):
            self.saver.save(snapshot, wait=wait)

    def _exit_preempted(self) -> None:
        logger.info(
            "told to stop: saved after step %d; --resume goes on from there", self.writer.num_done
        )
        raise SystemExit(EXIT_CODE)

    def _zero_counts(self) -> torch.Tensor:
        """Returns zeros [counts] for the reader's counts."""
        names = self.data.reader.count_names
        return torch.zeros(len(names), dtype=torch.int64, device=self.assembled.device)

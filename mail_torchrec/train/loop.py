"""Training loop: epochs of steps, records, checkpoints, and the stop on preemption."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import torch

from mail_torchrec.checkpoint.manifest import (
    CheckpointManifest,
    LogPosition,
    RankProgress,
    package_versions,
)
from mail_torchrec.checkpoint.saver import CheckpointSaver
from mail_torchrec.checkpoint.writer import Snapshot
from mail_torchrec.config import Config, flat_settings
from mail_torchrec.continuation.days import training_day
from mail_torchrec.continuation.parent_record import PARENT_FILE
from mail_torchrec.continuation.progressive_record import PROGRESSIVE_FILE
from mail_torchrec.data.reading.partition import DataPosition
from mail_torchrec.distributed.collectives import broadcast_from_rank_0, rank, world_size
from mail_torchrec.distributed.preemption import PreemptionHandler
from mail_torchrec.metrics.details import DETAILS
from mail_torchrec.model.step import StepOutputs
from mail_torchrec.optim.moving_rows import mark_moving_rows
from mail_torchrec.profiling.bottleneck import RunFacts
from mail_torchrec.profiling.step_watch import StepWatch, num_cores
from mail_torchrec.trackers.run_trackers import RunTrackers
from mail_torchrec.trackers.tracker import RunDescription
from mail_torchrec.train.assembly import AssembledModel
from mail_torchrec.train.data_splits import (
    DataSplit,
    Sources,
    log_counts,
    reduce_counts,
)
from mail_torchrec.train.metrics_writer import MetricsWriter
from mail_torchrec.train.resume import vocabulary_checksums
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.state import run_state
from mail_torchrec.train.steps import TimedBatches, run_steps
from mail_torchrec.train.validator import EvaluationInterruptedError, Validator
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.spans import span
from mail_torchrec.validation.progress import ValidationProgress

logger = get_logger(__name__)

ManifestFactory = Callable[
    [int, DataPosition, LogPosition, list[RankProgress], ValidationProgress], CheckpointManifest
]
"""Makes a manifest from step, data position, log position and the progress of all ranks and of the
validation."""


def manifest_factory(config: Config, sources: Sources, run_dir: RunDir) -> ManifestFactory:
    """Makes the function that describes each checkpoint of a run; every rank calls it."""
    checksums = broadcast_from_rank_0(lambda: vocabulary_checksums(run_dir))
    train, held_out = sources.train, sources.validation
    day = training_day(config.data, train)

    def make_manifest(
        step: int,
        position: DataPosition,
        progress: LogPosition,
        ranks: list[RankProgress],
        validation: ValidationProgress,
    ) -> CheckpointManifest:
        return CheckpointManifest(
            step=step,
            position=position,
            progress=progress,
            ranks=ranks,
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            config_name=config.name,
            versions=package_versions(),
            num_rows=train.num_stored_rows,
            data=tuple(train.fingerprints),
            day=None if day is None else str(day),
            validation_rows=held_out.num_rows if held_out else 0,
            validation_data=tuple(held_out.fingerprints) if held_out else (),
            validation=validation,
            vocabularies=checksums,
        )

    return make_manifest


def step_watch(
    config: Config, run_dir: RunDir, writer: MetricsWriter, device: torch.device
) -> StepWatch:
    """Makes what measures the steps of a run, and profiles those that it is told to."""
    facts = RunFacts(
        world_size=world_size(),
        num_workers=config.data.num_workers,
        group_by_user=config.data.group_by_user,
        sharded=config.sharding.enabled,
        compiled=config.train.compile,
        precision=config.train.precision,
        device=device.type,
        num_threads=torch.get_num_threads(),
        num_cores=num_cores(),
    )
    steps = writer.num_done, writer.num_steps
    return StepWatch(config.train.profile, run_dir.profile, *steps, device, facts)


def trackers_of_run(config: Config, run_dir: RunDir, *, goes_on: bool) -> RunTrackers:
    """Makes the trackers of a run on rank 0; elsewhere there are none.

    Args:
        config: of the run.
        run_dir: of the run.
        goes_on: whether the run is resumed.
    """
    described = RunDescription(config.name, run_dir.path, flat_settings(config), package_versions())
    paths = (run_dir.config, run_dir.plan, run_dir.data, run_dir.curves, run_dir.metrics)
    files = [*(path.name for path in paths), *DETAILS, PARENT_FILE, PROGRESSIVE_FILE]
    settings = config.trackers if rank() == 0 else []
    return RunTrackers(settings, described, files, goes_on=goes_on)


@dataclass
class TrainingLoop:
    """Trains from a position to the end of the last epoch, and saves checkpoints meanwhile."""

    assembled: AssembledModel
    data: DataSplit
    writer: MetricsWriter
    saver: CheckpointSaver
    preemption: PreemptionHandler
    watch: StepWatch
    make_manifest: ManifestFactory
    documents: dict[str, str]
    """File name -> text of the files that each checkpoint holds beside the tensors."""
    num_epochs: int
    save_every: int
    """Steps between two checkpoints; 0 saves at the end alone."""
    validator: Validator | None = None
    """None where the run has no validation rows."""

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
        if self.assembled.touched is not None:
            mark_moving_rows(self.assembled.optimizer, self.assembled.touched)
        if counts:
            self._counts += torch.tensor(counts, device=self._counts.device)
        for epoch in range(position.epoch, self.num_epochs):
            with span(f"training, epoch {epoch + 1}"):
                self._run_epoch(epoch)
            if self._is_stopped_early:
                break
            self._position, self._counts = DataPosition(epoch=epoch + 1), self._zero_counts()
        self._save(wait=True)
        if self.preemption.should_stop_after_last_step():
            self._exit_preempted()

    def _run_epoch(self, epoch: int) -> None:
        """Runs what is left of an epoch, and records the reader's counts."""
        reader = self.data.reader
        reader.set_epoch(epoch, self._position.consumed, followed=epoch + 1 < self.num_epochs)
        done = sum(part.steps for part in self._position.consumed)
        self._steps_of_epoch = done + reader.steps_left
        if self._evaluate_if_due(epoch):  # the run was preempted before this was done
            self._save()
        batches, num_done, left = TimedBatches(self.data.loader), 0, reader.steps_left
        while num_done < left and not self._is_stopped_early:
            # The pipeline prefetches no batch from behind the step of an evaluation.
            following = islice(batches, self._steps_to_evaluation(epoch))
            steps = run_steps(self.assembled.pipeline, following, self.writer.num_done + 1)
            for outputs in self.watch.steps(steps, self.assembled.pipeline.settle):
                num_done += 1
                self._position = DataPosition(epoch=epoch, consumed=reader.consumed(num_done))
                self._after_step(outputs, batches.waited())
        if self._is_stopped_early:
            return
        assert not left or next(batches, None) is None, "an epoch had more batches than steps"
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
        is_best = self._evaluate_if_due(self._position.epoch)
        if is_best or (self.save_every and self.writer.num_done % self.save_every == 0):
            self._save()

    def _evaluate_if_due(self, epoch: int) -> bool:
        """Evaluates the validation rows if that is due after this step and not done yet.

        Returns:
            Whether this step is the best so far.
        """
        step, validator = self.writer.num_done, self.validator
        if validator is None or step in (0, validator.progress.last_step):
            return False
        done, left = self._steps_of(epoch)
        is_last = not left and epoch + 1 == self.num_epochs
        if not (is_last or validator.interval.is_due(step, epoch, done, left)):
            return False
        self._confirm_best(validator)
        try:
            is_best = validator.evaluate()
        except EvaluationInterruptedError:
            self._save(wait=True)
            self._exit_preempted()
        if self._is_stopped_early:
            self.writer.finish()
            logger.info("stopped early after step %d: no better validation since", step)
        return is_best

    def _steps_to_evaluation(self, epoch: int) -> int | None:
        """Counts the steps of this epoch until the next evaluation; None where none follows."""
        if self.validator is None:
            return None
        step = self.writer.num_done
        return self.validator.interval.steps_until_due(step, epoch, *self._steps_of(epoch))

    def _steps_of(self, epoch: int) -> tuple[int, int]:
        """Counts the steps of an epoch that are done, and those that are left."""
        consumed = self._position.consumed if self._position.epoch == epoch else ()
        done = sum(part.steps for part in consumed)
        return done, self._steps_of_epoch - done

    @property
    def _is_stopped_early(self) -> bool:
        return self.validator is not None and self.validator.should_stop

    def _confirm_best(self, validator: Validator) -> None:
        """Waits for the checkpoint that is being written: is the best step saved?"""
        self.saver.finish()
        validator.confirm_best(self.saver.published_step)

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
        validation = ValidationProgress()
        if self.validator is not None:
            if self.validator.progress.best_step != step:
                self._confirm_best(self.validator)
            validation = self.validator.progress
        snapshot = Snapshot(
            step,
            run_state(self.assembled),
            RankProgress(losses=self.writer.loss_sums(), counts=self._counts.tolist()),
            lambda ranks: self.make_manifest(step, position, log_position, ranks, validation),
            self.documents,
            validation.best_step,
        )
        with span("saving a checkpoint", patient=True):
            self.saver.save(snapshot, wait=wait)

    def _exit_preempted(self) -> None:
        logger.info(
            "told to stop: saved after step %d; --resume goes on from there", self.writer.num_done
        )
        raise SystemExit(self.preemption.exit_code)

    def _zero_counts(self) -> torch.Tensor:
        """Returns zeros [counts] for the reader's counts."""
        names = self.data.reader.count_names
        return torch.zeros(len(names), dtype=torch.int64, device=self.assembled.device)

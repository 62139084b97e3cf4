"""Trains and evaluates runs: opens the run directory, loads, trains, evaluates, saves."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from mail_torchrec.checkpoint.data_record import DataRecord
from mail_torchrec.checkpoint.manifest import (
    CONFIG,
    PLAN,
    CheckpointManifest,
    LogPosition,
    RankProgress,
)
from mail_torchrec.checkpoint.saver import CheckpointSaver
from mail_torchrec.config import Config, dump_config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.reading.partition import DataPosition
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import broadcast_from_rank_0, rank
from mail_torchrec.distributed.preemption import PreemptionHandler
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.metrics.cohorts import CohortMetrics
from mail_torchrec.reporting.loss_curves import draw_loss_curves
from mail_torchrec.train.assembly import (
    AssembledModel,
    assemble,
    config_feature_tables,
    table_keys,
)
from mail_torchrec.train.data_splits import (
    DataSplit,
    fit_run_encoders,
    load_split,
    log_counts,
    open_sources,
    warn_without_new_rows,
)
from mail_torchrec.train.evaluation import Evaluation, evaluate
from mail_torchrec.train.loop import ManifestFactory, TrainingLoop
from mail_torchrec.train.memory_usage import memory_usage
from mail_torchrec.train.metrics_writer import MetricsWriter
from mail_torchrec.train.resume import (
    check_resumable,
    newest_intact_checkpoint,
    open_run,
    redistribute_progress,
    vocabulary_checksums,
)
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.state import restore
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.spans import span

logger = get_logger(__name__)


@dataclass(frozen=True)
class _ResumePoint:
    """Checkpoint that a run resumes from."""

    folder: Path
    manifest: CheckpointManifest


@dataclass(frozen=True)
class _TrainingJob:
    """Everything that the training of a run needs, ready on this rank."""

    config: Config
    run_dir: RunDir
    source: Source
    """Training data."""
    test_source: Source
    encoders: Encoders
    train_data: DataSplit
    test_data: DataSplit
    assembled: AssembledModel
    resume_point: _ResumePoint | None
    """None for a run that begins."""


def train(
    config: Config,
    run_dir: RunDir,
    plan: Path | None = None,
    *,
    resume: bool = False,
    from_scratch: bool = False,
) -> dict[str, CohortMetrics]:
    """Trains and evaluates one run; every rank calls it.

    Args:
        config: of the run.
        run_dir: directory that the run writes.
        plan: a plan file to shard by; None plans anew.
        resume: continue from the newest intact checkpoint; begin where there never was one. A
            finished run returns its metrics.
        from_scratch: move a run that the directory holds into a folder of its own, and begin.

    Returns:
        The final metrics by cohort, as in metrics.json.

    Raises:
        ValueError: something about the configuration or the data; the message says what to do.
        SystemExit: the run was preempted (SIGTERM), and is saved.
    """
    with (
        process_group(config.train.device, config.train.timeout) as device,
        run_dir.lock(resume=resume),
    ):
        finished = broadcast_from_rank_0(lambda: open_run(config, run_dir, resume, from_scratch))
        if finished is not None:
            return finished
        job = _prepare_job(config, run_dir, device, plan, resume)
        with _metrics_writer(job) as writer:
            _run_training(job, writer)
            writer.write_event({"usage": memory_usage(job.assembled)})
            found = _evaluate_job(job, writer)
        broadcast_from_rank_0(lambda: _write_results(job, found))
        return found.metrics


def _prepare_job(
    config: Config, run_dir: RunDir, device: torch.device, plan: Path | None, resume: bool
) -> _TrainingJob:
    """Loads the data, assembles the model, and writes configuration and plan."""
    source, test_source = open_sources(config)
    resume_point = _find_resume_point(config, run_dir, source) if resume else None
    if resume_point is None:
        fit_run_encoders(config, source, test_source.types, run_dir)
    encoders = Encoders.load(run_dir.vocabularies, config.schema_)
    feature_tables = config_feature_tables(config)
    train_data = load_split(config, encoders, feature_tables, source, training=True)
    if resume_point is not None:
        position = resume_point.manifest.position
        train_data.reader.set_epoch(position.epoch, position.consumed)
    train_data.reader.prefetch()  # beside the assembly
    assembled = assemble(config, encoders, device, plan)
    test_data = load_split(config, encoders, feature_tables, test_source, training=False)
    broadcast_from_rank_0(lambda: _write_documents(config, run_dir, assembled))
    sources = source, test_source
    return _TrainingJob(
        config, run_dir, *sources, encoders, train_data, test_data, assembled, resume_point
    )


def _write_documents(config: Config, run_dir: RunDir, assembled: AssembledModel) -> None:
    """Writes the plan, and as the last the configuration: from then on there is a run."""
    run_dir.metrics.unlink(missing_ok=True)  # of fewer epochs
    write_file(run_dir.plan, assembled.plan_file)
    write_file(run_dir.config, dump_config(config))


def _find_resume_point(config: Config, run_dir: RunDir, source: Source) -> _ResumePoint | None:
    """Finds the newest intact checkpoint, and checks that the run may resume from it."""
    with span("checking the checkpoints"):
        folder = newest_intact_checkpoint(run_dir.checkpoints, quarantine=True)
    if folder is None:
        broadcast_from_rank_0(run_dir.check_beginning)
        return None
    manifest = broadcast_from_rank_0(lambda: check_resumable(folder, config, source, run_dir))
    if rank() == 0:
        run_dir.record_checkpoint(manifest.step)
    return _ResumePoint(folder, manifest)


def _run_training(job: _TrainingJob, writer: MetricsWriter) -> None:
    """Trains from the resume point, or from the beginning, to the end of the last epoch."""
    config, point = job.config, job.resume_point
    saver = CheckpointSaver(
        job.run_dir.checkpoints,
        config.checkpoint,
        writer.write_event,
        job.run_dir.record_checkpoint,
        point.manifest.step if point else None,
        timeout=config.train.timeout,
    )
    preemption = PreemptionHandler(config.checkpoint.grace, config.train.timeout)
    with saver, preemption:
        loop = TrainingLoop(
            job.assembled,
            job.train_data,
            writer,
            saver,
            preemption,
            _manifest_factory(job),
            {CONFIG: dump_config(config), PLAN: job.assembled.plan_file},
            config.train.epochs,
            config.checkpoint.every,
        )
        if point is None:
            loop.run(DataPosition(epoch=0), [])
        else:
            _restore(job, point)
            counts = redistribute_progress(point.manifest.ranks).counts
            if counts and len(counts) != (num := len(job.train_data.reader.count_names)):
                raise ValueError(
                    f"'{point.folder}' should have {num} counts a rank, received {len(counts)}; it "
                    "is damaged"
                )
            loop.run(point.manifest.position, counts)


def _restore(job: _TrainingJob, point: _ResumePoint) -> None:
    """Reads the state of the run from its checkpoint."""
    tables = table_keys(job.config, job.assembled.feature_tables, job.encoders)
    restart = set(job.config.checkpoint.restart_state)
    with span("loading the checkpoint"):
        restore(job.assembled, point.folder, point.manifest.step, tables, restart)


def _metrics_writer(job: _TrainingJob) -> MetricsWriter:
    """Makes the writer of a run's records, from the step where the run begins or resumes."""
    config, reader = job.config, job.train_data.reader
    if job.resume_point is None:
        num_steps = config.train.epochs * len(reader)
        return MetricsWriter(job.run_dir, num_steps, config.train.log_every)
    manifest = job.resume_point.manifest
    later_epochs = config.train.epochs - manifest.position.epoch - 1
    left = reader.steps_left + later_epochs * len(reader)
    logger.info(
        "going on after step %d, in epoch %d: %d steps are left",
        manifest.step,
        manifest.position.epoch + 1,
        left,
    )
    losses = redistribute_progress(manifest.ranks).losses
    return MetricsWriter(
        job.run_dir,
        manifest.step + left,
        config.train.log_every,
        num_done=manifest.step,
        position=manifest.progress,
        loss_sums={name: torch.tensor(value) for name, value in losses.items()},
    )


def _manifest_factory(job: _TrainingJob) -> ManifestFactory:
    """Makes the function that describes each checkpoint of the run."""
    checksums = broadcast_from_rank_0(lambda: vocabulary_checksums(job.run_dir))
    versions = {name: version(name) for name in ("mail-torchrec", "torch", "torchrec")}

    def make_manifest(
        step: int, position: DataPosition, progress: LogPosition, ranks: list[RankProgress]
    ) -> CheckpointManifest:
        return CheckpointManifest(
            step=step,
            position=position,
            progress=progress,
            ranks=ranks,
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            config_name=job.config.name,
            versions=versions,
            num_rows=job.source.num_rows,
            data=tuple(job.source.fingerprints),
            vocabularies=checksums,
        )

    return make_manifest


def _evaluate_job(job: _TrainingJob, writer: MetricsWriter) -> Evaluation:
    """Evaluates the trained model on the test rows, and records the metrics."""
    predictions = job.run_dir.predictions if job.config.train.save_predictions else None
    with span("evaluation"):
        found = evaluate(job.assembled, job.test_data.reader, job.test_data.loader, predictions)
    writer.write_event({"evaluation": found.metrics, "counts": found.counts})
    log_counts("test", found.counts)
    num_new, num_rows = (found.metrics[cohort]["rows"] for cohort in ("new", "all"))
    warn_without_new_rows(job.config, job.test_source.path, num_new, num_rows)
    return found


def _write_results(job: _TrainingJob, found: Evaluation) -> None:
    """Writes plot and metrics; a plot that cannot be written is no reason to lose the metrics."""
    run_dir = job.run_dir
    try:
        draw_loss_curves([run_dir.log], run_dir.curves)
    except (OSError, ValueError) as error:
        logger.warning("the loss curves could not be drawn: %s", error)
    DataRecord.of(job.source, job.test_source, found.rows).write(run_dir.data)
    write_file(run_dir.metrics, json.dumps(found.metrics, indent=2) + "\n")

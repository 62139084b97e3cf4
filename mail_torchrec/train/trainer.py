"""Trains and evaluates runs: opens the run directory, loads, trains, evaluates, saves."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from mail_torchrec.checkpoint.manifest import CONFIG, PLAN
from mail_torchrec.checkpoint.saver import CheckpointSaver
from mail_torchrec.checkpoint.touched import load_touched
from mail_torchrec.config import Config, dump_config
from mail_torchrec.continuation.parent_record import PARENT_FILE
from mail_torchrec.continuation.progressive_record import PROGRESSIVE_FILE
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import EncoderFitter
from mail_torchrec.data.reading.partition import DataPosition
from mail_torchrec.distributed.collectives import broadcast_from_rank_0
from mail_torchrec.distributed.preemption import PreemptionHandler
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.metrics.cohorts import CohortMetrics
from mail_torchrec.profiling.step_watch import StepWatch, num_cores
from mail_torchrec.records.run_record import begin_record
from mail_torchrec.trackers.registry import check_trackers
from mail_torchrec.trackers.run_trackers import RunTrackers
from mail_torchrec.train.assembly import (
    AssembledModel,
    assemble,
    config_feature_tables,
    table_keys,
)
from mail_torchrec.train.continuation import (
    Continuation,
    ParentRun,
    check_same_parent,
    is_continued,
    open_parent,
)
from mail_torchrec.train.cost.memory_usage import memory_usage
from mail_torchrec.train.data_splits import (
    DataSplit,
    Sources,
    fit_run_encoders,
    load_split,
    log_counts,
    open_sources,
    split_validation_rows,
    warn_without_new_rows,
)
from mail_torchrec.train.evaluation import (
    Evaluation,
    detailed_metrics,
    evaluate,
    evaluation_format,
    write_results,
    writing_predictions,
)
from mail_torchrec.train.loop import TrainingLoop, manifest_factory, step_watch, trackers_of_run
from mail_torchrec.train.metrics_writer import MetricsWriter, writer_of_run
from mail_torchrec.train.resume import (
    ResumePoint,
    find_resume_point,
    load_best_weights,
    open_run,
    redistribute_progress,
    resumed_progress,
)
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.state import restore
from mail_torchrec.train.validator import Validator, check_validation_settings, sample_rows
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.spans import span
from mail_torchrec.validation.progress import ValidationProgress

logger = get_logger(__name__)


@dataclass(frozen=True)
class _TrainingJob:
    """Everything that the training of a run needs, ready on this rank."""

    config: Config
    run_dir: RunDir
    sources: Sources
    encoders: Encoders
    train_data: DataSplit
    validation_data: DataSplit | None
    """None where the run has no validation rows."""
    test_data: DataSplit
    assembled: AssembledModel
    resume_point: ResumePoint | None
    """None for a run that begins."""
    continuation: Continuation | None
    """None for a run that begins without a parent, or is resumed."""


def train(
    config: Config,
    run_dir: RunDir,
    plan: Path | None = None,
    *,
    resume: bool = False,
    from_scratch: bool = False,
    parent: ParentRun | None = None,
) -> dict[str, CohortMetrics]:
    """Trains and evaluates one run; every rank calls it.

    Args:
        config: of the run.
        run_dir: directory that the run writes.
        plan: a plan file to shard by; None plans anew.
        resume: continue from the newest intact checkpoint; begin where there never was one. A
            finished run returns its metrics.
        from_scratch: move a run that the directory holds into a folder of its own, and begin.
        parent: run whose weights the run begins with; None for none, or the one that it has.

    Returns:
        The final metrics by cohort, as in metrics.json.

    Raises:
        ValueError: something about the configuration or the data; the message says what to do.
        SystemExit: the run was told to stop (SIGTERM, SIGINT, SIGHUP), and is saved.
    """
    with (
        process_group(config.train.device, config.train.timeout) as device,
        run_dir.lock(resume=resume),
    ):
        config = config.on_device(device.type, num_cores())
        if not from_scratch:
            broadcast_from_rank_0(lambda: check_same_parent(run_dir, parent))
        finished = broadcast_from_rank_0(lambda: open_run(config, run_dir, resume, from_scratch))
        if finished is not None:
            return finished
        job = _prepare_job(config, run_dir, device, plan, parent, resume)
        with trackers_of_run(config, run_dir, goes_on=job.resume_point is not None) as trackers:
            with (
                _metrics_writer(job, trackers) as writer,
                step_watch(config, run_dir, writer, device) as watch,
            ):
                model_step = _run_training(job, writer, watch)
                usage = memory_usage(job.assembled.model, job.assembled.optimizer, device)
                writer.write_event({"usage": usage} | watch.finish())
                found = _evaluate_job(job, writer)
            chosen = None if job.validation_data is None else model_step
            of_run = config, run_dir, job.sources, found, chosen
            broadcast_from_rank_0(lambda: write_results(*of_run))
            trackers.log_metrics("test", found.metrics, model_step)
        return found.metrics


def _prepare_job(
    config: Config,
    run_dir: RunDir,
    device: torch.device,
    plan: Path | None,
    parent: ParentRun | None,
    resume: bool,
) -> _TrainingJob:
    """Loads the data, assembles the model, and writes configuration and plan."""
    check_validation_settings(config)
    broadcast_from_rank_0(lambda: check_trackers(config.trackers))
    sources = open_sources(config)
    if config.train.save_predictions:
        evaluation_format(config).row_keys(sources.test)  # checks it now, not after the training
    detailed_metrics(config, sources)  # checks them now
    resume_point = find_resume_point(config, run_dir, sources) if resume else None
    sources = split_validation_rows(sources)
    begun = None
    if resume_point is None:
        begun = open_parent(config, run_dir, sources.train, parent)
        fit_on = EncoderFitter.encoders if begun is None else begun.fit_encoders
        fit_run_encoders(config, sources, run_dir, fit_on)
    encoders = Encoders.load(run_dir.vocabularies, config.schema_)
    feature_tables = config_feature_tables(config)
    load = partial(load_split, config, encoders, feature_tables)
    train_data = load(sources.train, training=True)
    if resume_point is not None:
        position = resume_point.manifest.position
        train_data.reader.set_epoch(position.epoch, position.consumed)
    train_data.reader.prefetch()  # beside the assembly
    records = config.checkpoint.records_touched(is_continued=is_continued(run_dir))
    begins = resume_point is None
    assembled = assemble(
        config, encoders, device, plan, reads_vectors=begins, records_touched=records
    )
    validation_data = None
    if sources.validation is not None:
        num_rows = config.train.validation_rows(sources.train.num_rows)
        rows = sample_rows(sources.validation, num_rows)
        validation_data = load(rows, training=False)
    test_data = load(sources.test, training=False)
    broadcast_from_rank_0(lambda: _write_documents(config, run_dir, assembled))
    data = train_data, validation_data, test_data
    return _TrainingJob(config, run_dir, sources, encoders, *data, assembled, resume_point, begun)


def _write_documents(config: Config, run_dir: RunDir, assembled: AssembledModel) -> None:
    """Writes the plan, and as the last the configuration: from then on there is a run."""
    run_dir.metrics.unlink(missing_ok=True)  # of fewer epochs
    write_file(run_dir.plan, assembled.plan_file)
    write_file(run_dir.config, dump_config(config))
    names = [run_dir.config.name, run_dir.plan.name, run_dir.vocabularies.name]
    of_parent = (name for name in (PARENT_FILE, PROGRESSIVE_FILE) if (run_dir.path / name).exists())
    begin_record(run_dir.path, [*names, *of_parent])


def _run_training(job: _TrainingJob, writer: MetricsWriter, watch: StepWatch) -> int:
    """Trains from the resume point, or from the beginning, to the end; returns the best step.

    The model has the weights of that step then: of the last one, without validation rows.
    """
    config, point = job.config, job.resume_point
    saver = CheckpointSaver(
        job.run_dir.checkpoints,
        config.checkpoint,
        writer.write_event,
        job.run_dir.record_checkpoint,
        point.manifest.step if point else None,
        timeout=config.train.timeout,
    )
    preemption = PreemptionHandler(
        config.checkpoint.grace,
        config.train.timeout,
        lambda: (writer.num_done, saver.published_step),
    )
    validator = _validator(job, writer, preemption)
    with saver, preemption:
        loop = TrainingLoop(
            job.assembled,
            job.train_data,
            writer,
            saver,
            preemption,
            watch,
            manifest_factory(config, job.sources, job.run_dir),
            {CONFIG: dump_config(config), PLAN: job.assembled.plan_file},
            config.train.epochs,
            config.checkpoint.steps_between(len(job.train_data.reader)),
            validator,
        )
        if point is None:
            if job.continuation is not None:
                of_run = job.assembled, config, job.encoders, job.sources.train
                job.continuation.begin(*of_run, job.run_dir, writer, preemption)
            loop.run(DataPosition(epoch=0), [])
        else:
            _restore(job, point)
            counts = redistribute_progress(point.manifest.ranks).counts
            if counts and len(counts) != (num := len(job.train_data.reader.count_names)):
                found = f"should have {num} counts a rank, received {len(counts)}"
                raise ValueError(f"'{point.folder}' {found}; it is damaged")
            loop.run(point.manifest.position, counts)
        if validator is None:
            return writer.num_done
        validator.log_outcome(len(job.train_data.reader))
        return load_best_weights(job.assembled, job.run_dir.checkpoints, writer.num_done)


def _validator(
    job: _TrainingJob, writer: MetricsWriter, preemption: PreemptionHandler
) -> Validator | None:
    """Makes what evaluates on the way; None where the run has no validation rows."""
    if job.validation_data is None:
        return None
    progress = ValidationProgress()
    if job.resume_point is not None:
        progress = resumed_progress(job.run_dir.checkpoints, job.resume_point.manifest)
    of_run = job.assembled, job.validation_data, job.config.train, writer, progress
    return Validator(*of_run, preemption.should_stop)


def _restore(job: _TrainingJob, point: ResumePoint) -> None:
    """Reads the state of the run from its checkpoint."""
    tables = table_keys(job.config, job.assembled.feature_tables, job.encoders)
    restart = set(job.config.checkpoint.restart_state)
    with span("loading the checkpoint"):
        restore(job.assembled, point.folder, point.manifest.step, tables, restart)
        if job.assembled.touched is not None:
            load_touched(job.assembled.touched, point.folder)


def _metrics_writer(job: _TrainingJob, trackers: RunTrackers) -> MetricsWriter:
    """Makes the writer of a run's records, from the step where the run begins or resumes."""
    of_run = job.config, job.run_dir, job.train_data.reader, job.assembled.optimizer
    first_step = 0 if job.continuation is None else job.continuation.first_step
    return writer_of_run(*of_run, job.resume_point, trackers, first_step)


def _evaluate_job(job: _TrainingJob, writer: MetricsWriter) -> Evaluation:
    """Evaluates the trained model on the test rows, and records the metrics."""
    folder = job.run_dir.predictions if job.config.train.save_predictions else None
    with span("evaluation"), writing_predictions(folder, job.sources.test, job.config) as on_batch:
        detailed, test_data = detailed_metrics(job.config, job.sources), job.test_data
        found = evaluate(job.assembled, test_data.reader, test_data.loader, on_batch, detailed)
    writer.write_event({"evaluation": found.metrics, "counts": found.counts})
    log_counts("test", found.counts)
    num_new, num_rows = (found.metrics[cohort]["rows"] for cohort in ("new", "all"))
    warn_without_new_rows(job.config, job.sources.test.path, num_new, num_rows)
    return found

"""Choice of the checkpoint that a run resumes from, and the checks that it may."""

import json
from dataclasses import dataclass
from pathlib import Path

from mail_torchrec.checkpoint.data_record import (
    SourceRecord,
    read_data_record,
    read_labels_checksum,
)
from mail_torchrec.checkpoint.folder import Checkpoints, step_of
from mail_torchrec.checkpoint.intact import checked_model_checkpoint, newest_intact_checkpoint
from mail_torchrec.checkpoint.manifest import (
    CONFIG,
    CheckpointManifest,
    RankProgress,
    read_manifest,
)
from mail_torchrec.config import Config, config_differences, load_config, recorded_config
from mail_torchrec.distributed.collectives import (
    broadcast_from_rank_0,
    rank,
    world_size,
)
from mail_torchrec.metrics.cohorts import CohortMetrics
from mail_torchrec.records.checksums import sha256_of_files
from mail_torchrec.records.run_record import read_recorded, record_faults
from mail_torchrec.reporting.cohorts import COHORTS
from mail_torchrec.reporting.compared_runs import is_cohort
from mail_torchrec.train.assembly import AssembledModel
from mail_torchrec.train.data_splits import Sources, open_sources
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.state import load_model
from mail_torchrec.utils.config_trees import NEUTRAL_SETTINGS
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.spans import span
from mail_torchrec.validation.progress import ValidationProgress

logger = get_logger(__name__)

CHECKPOINT = "checkpoint"
"""Key of metrics.json that names the step of the weights, beside the cohorts."""
_NEUTRAL_TO_RESULTS = tuple(name for name in NEUTRAL_SETTINGS if name != "metrics.")
"""Settings that leave the figures of a finished run as they are."""
_CHANGEABLE_SETTINGS = (
    *NEUTRAL_SETTINGS,
    "checkpoint.restart_state",
    "sharding.communication",
    "sharding.communication.",
    "sharding.replicas",
    "data.shuffle_buffer_size",
    "train.epochs",
    "train.batch_size",
    "train.precision",
    "train.freeze",
)
"""Settings that a resumed run may change; the training data must have the same rows, wherever it
lies."""


@dataclass(frozen=True)
class ResumePoint:
    """Checkpoint that a run resumes from."""

    folder: Path
    manifest: CheckpointManifest


def find_resume_point(config: Config, run_dir: RunDir, sources: Sources) -> ResumePoint | None:
    """Finds the newest intact checkpoint, and checks that the run may resume from it."""
    with span("checking the checkpoints"):
        folder = newest_intact_checkpoint(run_dir.checkpoints, quarantine=True)
    if folder is None:
        broadcast_from_rank_0(run_dir.check_beginning)
        return None
    manifest = broadcast_from_rank_0(lambda: check_resumable(folder, config, sources, run_dir))
    if rank() == 0:
        run_dir.record_checkpoint(manifest.step)
    return ResumePoint(folder, manifest)


def check_resumable(
    folder: Path, config: Config, sources: Sources, run_dir: RunDir
) -> CheckpointManifest:
    """Checks that a run may resume from a checkpoint, and returns its manifest.

    Args:
        folder: the checkpoint.
        config: of the run that resumes.
        sources: data of the run that resumes.
        run_dir: holds the vocabularies.

    Raises:
        ValueError: the checkpoint has another format, configuration, training data or vocabularies;
            all differences are listed.
    """
    manifest = read_manifest(folder)
    found = load_config(folder / CONFIG, [])
    if other := config_differences(found, config, _CHANGEABLE_SETTINGS):
        raise ValueError(
            f"'{folder}' was trained with another configuration; resume with the same, or choose "
            "another --run-dir:\n  " + "\n  ".join(other)
        )
    parts = [("training", sources.train, manifest.num_rows, manifest.data)]
    if sources.validation is not None:
        rows, files = manifest.validation_rows, manifest.validation_data
        parts.append(("validation", sources.validation, rows, files))
    for part, source, num_rows, recorded in parts:
        if difference := SourceRecord.of_files(num_rows, recorded).difference(source):
            raise ValueError(
                f"'{source.path}' is not the {part} data of '{folder}': {difference}; bring that "
                "data back, or start a run of its own"
            )
    _check_epochs(folder, manifest, config)
    check_vocabularies(folder, run_dir)
    return manifest


def check_vocabularies(folder: Path, run_dir: RunDir) -> None:
    """Checks that the vocabularies of a run are those that a checkpoint was trained with.

    Raises:
        ValueError: a file was changed, dropped or added; all are named.
    """
    expected = read_manifest(folder).vocabularies
    if changed := vocabulary_checksums(run_dir).items() ^ expected.items():
        names = sorted({name for name, _ in changed})
        raise ValueError(
            f"'{run_dir.vocabularies}' is not what '{folder}' was trained with: "
            f"{', '.join(names)} changed"
        )


def load_best_weights(assembled: AssembledModel, checkpoints: Checkpoints, step: int) -> int:
    """Loads the weights of the best checkpoint into a model that was trained to its last step.

    Args:
        assembled: the model.
        checkpoints: of the run, that of the last step among them.
        step: the last one.

    Returns:
        Step of the weights.

    Raises:
        ValueError: the best checkpoint is gone or damaged.
    """
    folder = checked_model_checkpoint(checkpoints, checkpoints.target(step))
    if step_of(folder) != step:
        load_model(assembled, folder)
    return step_of(folder)


def resumed_progress(checkpoints: Checkpoints, manifest: CheckpointManifest) -> ValidationProgress:
    """Returns the progress of the validation that a run resumes, and corrects the file ``best``.

    Where the best checkpoint is gone, the best of the steps from here on is looked for.
    """
    progress = manifest.validation

    def correct() -> bool:
        best_step = progress.best_step
        is_there = best_step is not None and checkpoints.target(best_step).is_dir()
        checkpoints.mark_best(best_step if is_there else None)
        return is_there

    if broadcast_from_rank_0(correct) or progress.best_step is None:
        return progress
    logger.warning(
        "the best checkpoint so far, that of step %d, is gone; the best of the steps from here on "
        "is kept",
        progress.best_step,
    )
    return progress.with_best_of(ValidationProgress())


def _check_epochs(folder: Path, manifest: CheckpointManifest, config: Config) -> None:
    """Refuses fewer epochs than the checkpoint was trained for."""
    begun = manifest.position.epoch + bool(manifest.position.consumed)
    if begun > config.train.epochs:
        raise ValueError(
            f"'{folder}' has begun epoch {begun}; train.epochs should be at least {begun} to go "
            f"on from it, received {config.train.epochs}"
        )


def check_finished(config: Config, run_dir: RunDir, sources: Sources) -> None:
    """Checks that the metrics of a finished run are those of a configuration and its data.

    Args:
        config: of the run that resumes.
        run_dir: of the finished run.
        sources: data of the run that resumes.

    Raises:
        ValueError: the run had another configuration or other data, or has no predictions and
            should have; all differences are listed.
    """
    finished = f"the run in '{run_dir.path}' is finished"
    if other := config_differences(recorded_config(run_dir.path), config, _NEUTRAL_TO_RESULTS):
        raise ValueError(
            f"{finished}, and had another configuration; resume with the same, or choose another "
            "--run-dir:\n  " + "\n  ".join(other)
        )
    if config.train.save_predictions and not run_dir.predictions.exists():
        raise ValueError(
            f"{finished}, without predictions; leave train.save_predictions out, and write them "
            "with mail-torchrec evaluate --predictions"
        )
    record, test = read_data_record(run_dir.data), sources.test
    parts = [("training", record.train, sources.train), ("test", record.test, test)]
    if sources.validation is not None and record.validation is not None:
        parts.append(("validation", record.validation, sources.validation))
    other = [
        f"{part} data '{source.path}': {difference}"
        for part, recorded, source in parts
        if (difference := recorded.difference(source))
    ]
    if not other and record.test_labels != read_labels_checksum(test, config.schema_):
        other = [f"test data '{test.path}': its rows have other users or labels"]
    if other:
        raise ValueError(
            f"{finished}, and had other data; bring that data back, choose another --run-dir, or "
            "score other rows with mail-torchrec evaluate --data:\n  " + "\n  ".join(other)
        )


def vocabulary_checksums(run_dir: RunDir) -> dict[str, str]:
    """Computes the checksums of the files in ``vocabularies/``, by name."""
    files = (path.name for path in run_dir.vocabularies.iterdir() if not path.is_dir())
    return sha256_of_files(run_dir.vocabularies, sorted(files))


def redistribute_progress(ranks: list[RankProgress]) -> RankProgress:
    """Returns this rank's sums and counts: its own, or its part of another number of ranks'.

    Args:
        ranks: progress of each rank that wrote the checkpoint.
    """
    if len(ranks) == world_size():
        return ranks[rank()]
    # The loss of a step is the mean of the ranks' shares; counts are sums.
    losses = {
        name: sum(part.losses[name] for part in ranks) / len(ranks) for name in ranks[0].losses
    }
    counts = [sum(column) for column in zip(*(part.counts for part in ranks), strict=True)]
    return RankProgress(losses=losses, counts=counts if rank() == 0 else [])


def open_run(
    config: Config, run_dir: RunDir, resume: bool, from_scratch: bool
) -> dict[str, CohortMetrics] | None:
    """Opens the run directory; returns the metrics of a run that has nothing left to train.

    Raises:
        ValueError: the directory holds a run that is not to be resumed, or a finished one of
            another configuration or other data.
    """
    run_dir.open(resume=resume, from_scratch=from_scratch)
    if not run_dir.metrics.exists() or (metrics := _read_metrics(run_dir)) is None:
        return None
    epochs = recorded_config(run_dir.path).train.epochs
    if config.train.epochs > epochs:
        return None
    check_finished(config, run_dir, open_sources(config))
    logger.info(
        "the run in '%s' is finished, with %d epochs; these are its metrics", run_dir.path, epochs
    )
    return metrics


def _read_metrics(run_dir: RunDir) -> dict[str, CohortMetrics] | None:
    """Reads the metrics of a finished run; None where its files are not as it wrote them."""
    results = [run_dir.config, run_dir.data, run_dir.metrics]
    if run_dir.predictions.exists():
        results.append(run_dir.predictions)
    if faults := record_faults(run_dir.path, [path.name for path in results]):
        logger.warning(
            "the run in '%s' is damaged, and is evaluated anew: %s", run_dir.path, "; ".join(faults)
        )
        return None
    metrics: dict[str, CohortMetrics] = json.loads(read_recorded(run_dir.path, results[2].name))
    if not isinstance(metrics, dict) or not all(is_cohort(metrics.get(name)) for name in COHORTS):
        logger.warning("'%s' holds no metrics; the run is evaluated anew", run_dir.metrics)
        return None
    metrics.pop(CHECKPOINT, None)
    return metrics

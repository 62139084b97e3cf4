"""Choice of the checkpoint that a run resumes from, and the checks that it may."""

import json
from functools import partial
from pathlib import Path

from mail_torchrec.checkpoint.data_record import (
    SourceRecord,
    read_data_record,
    read_labels_checksum,
)
from mail_torchrec.checkpoint.folder import (
    Checkpoints,
    checksum_error,
    read_checksums,
    sha256_of_files,
)
from mail_torchrec.checkpoint.integrity import list_faults
from mail_torchrec.checkpoint.manifest import (
    CONFIG,
    CheckpointManifest,
    RankProgress,
    check_format,
    read_manifest,
)
from mail_torchrec.config import Config, config_differences, load_config
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import (
    broadcast_from_rank_0,
    gather_objects,
    rank,
    world_size,
)
from mail_torchrec.metrics.cohorts import CohortMetrics
from mail_torchrec.train.data_splits import open_sources
from mail_torchrec.train.run_dir import FROM_SCRATCH, RunDir
from mail_torchrec.utils.config_trees import NEUTRAL_SETTINGS
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_CHANGEABLE_SETTINGS = (
    *NEUTRAL_SETTINGS,
    "checkpoint.restart_state",
    "data.shuffle_buffer_size",
    "train.epochs",
    "train.batch_size",
    "train.precision",
)
"""Settings that a resumed run may change; the training data must have the same rows, wherever it
lies."""


class CheckpointReadError(OSError):
    """A checkpoint cannot be read now, which does not say that it is damaged."""


def newest_intact_checkpoint(checkpoints: Checkpoints, *, quarantine: bool = False) -> Path | None:
    """Finds the newest checkpoint whose files match their checksums.

    Every rank calls it, and checks a part of the files. Damaged ones are renamed where one before
    them is intact, and only then.

    Args:
        checkpoints: of a run.
        quarantine: whether to rename damaged checkpoints.

    Returns:
        None where there is none.

    Raises:
        ValueError: every checkpoint is damaged, or has another format.
        CheckpointReadError: a checkpoint that is newer than all intact ones cannot be read.
    """
    damaged: dict[Path, list[str]] = {}
    for path in reversed(broadcast_from_rank_0(checkpoints.published)):
        broadcast_from_rank_0(partial(check_format, path))
        faults = _faults(path)
        if faults:
            damaged[path] = faults
            continue
        for other, faults in damaged.items():
            told = "\n  ".join(faults)
            logger.warning("'%s' is damaged, the one before it is used:\n  %s", other, told)
        if quarantine:
            broadcast_from_rank_0(lambda: [checkpoints.quarantine(other) for other in damaged])
        return path
    if damaged:
        faults = [fault for faults in damaged.values() for fault in faults]
        raise ValueError(
            f"every checkpoint below '{checkpoints.path}' is damaged, and none was changed; bring "
            f"one back from a copy, or {FROM_SCRATCH}:\n  " + "\n  ".join(faults)
        )
    return None


def _faults(folder: Path) -> list[str]:
    """Lists the faults of a checkpoint, the same on every rank.

    Raises:
        CheckpointReadError: on every rank, a file cannot be read.
    """
    faults: list[str] = []
    unreadable: str | None = None
    try:
        checksums = read_checksums(folder)
        own = sorted(checksums)[rank() :: world_size()]
        listed = list_faults(folder, checksums) if rank() == 0 else []
        found = (checksum_error(folder, name, checksums[name]) for name in own)
        faults = [*listed, *filter(None, found)]
    except ValueError as error:
        faults = [str(error)]
    except OSError as error:
        unreadable = str(error)
    outcomes = gather_objects((faults, unreadable))
    if errors := dict.fromkeys(error for _, error in outcomes if error is not None):
        raise CheckpointReadError(
            f"'{folder}' cannot be read, which does not say that it is damaged, and nothing was "
            "changed; try again when it can be read, or move that folder away to go on from the "
            "checkpoint before it:\n  " + "\n  ".join(errors)
        )
    return list(dict.fromkeys(fault for faults, _ in outcomes for fault in faults))


def check_resumable(
    folder: Path, config: Config, source: Source, run_dir: RunDir
) -> CheckpointManifest:
    """Checks that a run may resume from a checkpoint, and returns its manifest.

    Args:
        folder: the checkpoint.
        config: of the run that resumes.
        source: training data of the run that resumes.
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
    recorded = SourceRecord.of_files(manifest.num_rows, manifest.data)
    if difference := recorded.difference(source):
        raise ValueError(
            f"'{source.path}' is not the training data of '{folder}': {difference}; bring that "
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


def _check_epochs(folder: Path, manifest: CheckpointManifest, config: Config) -> None:
    """Refuses fewer epochs than the checkpoint was trained for."""
    begun = manifest.position.epoch + bool(manifest.position.consumed)
    if begun > config.train.epochs:
        raise ValueError(
            f"'{folder}' has begun epoch {begun}; train.epochs should be at least {begun} to go "
            f"on from it, received {config.train.epochs}"
        )


def check_finished(config: Config, run_dir: RunDir, train: Source, test: Source) -> None:
    """Checks that the metrics of a finished run are those of a configuration and its data.

    Args:
        config: of the run that resumes.
        run_dir: of the finished run.
        train: training data of the run that resumes.
        test: its test data.

    Raises:
        ValueError: the run had another configuration or other data, or has no predictions and
            should have; all differences are listed.
    """
    finished = f"the run in '{run_dir.path}' is finished"
    if other := config_differences(load_config(run_dir.config, []), config, NEUTRAL_SETTINGS):
        raise ValueError(
            f"{finished}, and had another configuration; resume with the same, or choose another "
            "--run-dir:\n  " + "\n  ".join(other)
        )
    if config.train.save_predictions and not run_dir.predictions.exists():
        raise ValueError(
            f"{finished}, without predictions; leave train.save_predictions out, and write them "
            "with mail-torchrec evaluate --predictions"
        )
    record = read_data_record(run_dir.data)
    parts = (("training", record.train, train), ("test", record.test, test))
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
    files = (path.name for path in run_dir.vocabularies.iterdir() if path.is_file())
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
    epochs = load_config(run_dir.config, []).train.epochs
    if config.train.epochs > epochs:
        return None
    check_finished(config, run_dir, *open_sources(config))
    logger.info(
        "the run in '%s' is finished, with %d epochs; these are its metrics", run_dir.path, epochs
    )
    return metrics


def _read_metrics(run_dir: RunDir) -> dict[str, CohortMetrics] | None:
    """Reads the metrics of a finished run; None where they are damaged."""
    try:
        metrics: dict[str, CohortMetrics] = json.loads(run_dir.metrics.read_text())
    except ValueError as error:
        logger.warning("'%s' is damaged, the run is evaluated anew: %s", run_dir.metrics, error)
        return None
    return metrics

"""Choice of the checkpoint that a run resumes from, and the checks that it may."""

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
from mail_torchrec.checkpoint.manifest import (
    CONFIG,
    CheckpointManifest,
    RankProgress,
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
from mail_torchrec.train.run_dir import RunDir
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


def newest_intact_checkpoint(checkpoints: Checkpoints, *, quarantine: bool = False) -> Path | None:
    """Finds the newest checkpoint whose files match their checksums.

    Every rank calls it, and checks a part of the files.

    Args:
        checkpoints: of a run.
        quarantine: whether to rename damaged checkpoints.

    Returns:
        None where none was published.

    Raises:
        ValueError: every checkpoint is damaged.
    """
    published = broadcast_from_rank_0(checkpoints.published)
    damaged = []
    for path in reversed(published):
        faults = _faults(path)
        if not faults:
            return path
        damaged += faults
        logger.warning(
            "'%s' is damaged, the one before it is used:\n  %s", path, "\n  ".join(faults)
        )
        if quarantine and rank() == 0:
            checkpoints.quarantine(path)
    if damaged:
        raise ValueError(
            f"every checkpoint below '{checkpoints.path}' is damaged; delete the run directory to "
            "begin anew:\n  " + "\n  ".join(damaged)
        )
    return None


def _faults(folder: Path) -> list[str]:
    """Lists the faults of a checkpoint, the same on every rank."""
    try:
        checksums = broadcast_from_rank_0(lambda: read_checksums(folder))
    except ValueError as error:
        return [str(error)]
    own = [
        fault
        for name in sorted(checksums)[rank() :: world_size()]
        if (fault := checksum_error(folder, name, checksums[name]))
    ]
    return [fault for faults in gather_objects(own) for fault in faults]


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
    recorded = SourceRecord(rows=manifest.num_rows, fingerprint=manifest.data)
    if difference := recorded.difference(source):
        raise ValueError(
            f"'{source.path}' is not the training data of '{folder}': {difference}; bring that "
            "data back, or start a run of its own"
        )
    _check_epochs(folder, manifest, config)
    if changed := vocabulary_checksums(run_dir).items() ^ manifest.vocabularies.items():
        names = sorted({name for name, _ in changed})
        raise ValueError(
            f"'{run_dir.vocabularies}' is not what '{folder}' was trained with: "
            f"{', '.join(names)} changed"
        )
    return manifest


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

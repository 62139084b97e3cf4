"""Choice of the checkpoint that a run resumes from, and the checks that it may."""

from pathlib import Path

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
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_CHANGEABLE_SETTINGS = (
    "checkpoint.",
    "sharding.",
    "data.root",
    "data.train",
    "data.test",
    "data.num_workers",
    "data.shuffle_buffer_size",
    "train.epochs",
    "train.batch_size",
    "train.eval_batch_size",
    "train.log_every",
    "train.device",
    "train.timeout",
    "train.save_predictions",
    "train.precision",
    "train.compile",
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
    other = [
        line
        for line in config_differences(load_config(folder / CONFIG, []), config)
        if not line.startswith(_CHANGEABLE_SETTINGS)
    ]
    if other:
        raise ValueError(
            f"'{folder}' was trained with another configuration; resume with the same, or choose "
            "another --run-dir:\n  " + "\n  ".join(other)
        )
    if manifest.data != source.fingerprint:
        raise ValueError(
            f"'{source.path}' is not the training data of '{folder}': its row groups have other "
            f"sizes ({source.num_rows} rows, "
            f"{manifest.num_rows} then); bring that data back, or start a run of its own"
        )
    if changed := vocabulary_checksums(run_dir).items() ^ manifest.vocabularies.items():
        names = sorted({name for name, _ in changed})
        raise ValueError(
            f"'{run_dir.vocabularies}' is not what '{folder}' was trained with: "
            f"{', '.join(names)} changed"
        )
    return manifest


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

"""Choice of a checkpoint: the newest intact one, or the one whose weights are a run's model."""

from functools import partial
from pathlib import Path

from mail_torchrec.checkpoint.folder import Checkpoints, step_of
from mail_torchrec.checkpoint.integrity import list_faults
from mail_torchrec.checkpoint.manifest import check_format, read_manifest
from mail_torchrec.distributed.collectives import (
    broadcast_from_rank_0,
    gather_objects,
    rank,
    world_size,
)
from mail_torchrec.records.checksums import checksum_error, read_checksums
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

FROM_SCRATCH = (
    "train anew with --from-scratch, which moves everything there into a folder of its own"
)
"""Remedy for a run that cannot be resumed."""


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
        faults = faults_over_ranks(path)
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


def intact_model_checkpoint(checkpoints: Checkpoints) -> Path | None:
    """Finds the checkpoint whose weights are a run's model, see :func:`model_checkpoint`.

    Every rank calls it, and checks a part of the files.

    Returns:
        None where there is none.

    Raises:
        ValueError: the best checkpoint is gone or damaged, or as :func:`newest_intact_checkpoint`.
        CheckpointReadError: it cannot be read.
    """
    newest = newest_intact_checkpoint(checkpoints)
    return None if newest is None else checked_model_checkpoint(checkpoints, newest)


def checked_model_checkpoint(checkpoints: Checkpoints, newest: Path) -> Path:
    """Finds it beside an intact newest checkpoint; arguments and errors as there."""
    folder = broadcast_from_rank_0(lambda: model_checkpoint(checkpoints, newest))
    if folder != newest and (faults := faults_over_ranks(folder)):
        raise ValueError(
            f"'{folder}', the best checkpoint of the run, is damaged; bring it back from a copy, "
            "or train the run again:\n  " + "\n  ".join(faults)
        )
    return folder


def model_checkpoint(checkpoints: Checkpoints, newest: Path) -> Path:
    """Finds the checkpoint that is evaluated, exported and served.

    That is the best one by the run's validation rows, as the newest checkpoint and the file
    ``best`` name it (of two the later one: the run was stopped between both), and the newest one
    where a run has no validation rows or none had a value. Its files are not checked.

    Args:
        checkpoints: of a run.
        newest: the newest of them that can be read.

    Raises:
        ValueError: the best checkpoint is gone, or the newest one is damaged.
    """
    named = checkpoints.best_step(), read_manifest(newest).validation.best_step
    steps = {step for step in named if step is not None}
    if not steps:
        return newest
    found = [path for path in map(checkpoints.target, steps) if path.is_dir()]
    if not found:
        raise ValueError(
            f"the run's best checkpoint '{checkpoints.target(max(steps))}' is missing; bring it "
            "back from a copy, or train the run again"
        )
    return max(found, key=step_of)


def faults_over_ranks(folder: Path) -> list[str]:
    """Lists the faults of a checkpoint, the same on every rank, each of which checks some files.

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

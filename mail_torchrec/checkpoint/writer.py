"""Writes one checkpoint from all ranks, and publishes it when it is complete."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from mail_torchrec.checkpoint.folder import DCP_METADATA, Checkpoints
from mail_torchrec.checkpoint.manifest import (
    MANIFEST,
    CheckpointManifest,
    RankProgress,
    manifest_text,
)
from mail_torchrec.checkpoint.staging import StateDict
from mail_torchrec.checkpoint.storage import write_tensors
from mail_torchrec.checkpoint.tensor_index import INDEX
from mail_torchrec.distributed.collectives import gather_objects, rank
from mail_torchrec.records.checksums import CHECKSUMS, sha256_of_files, write_checksums
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import write_file

T = TypeVar("T")

logger = get_logger(__name__)


class CheckpointWriteError(OSError):
    """A checkpoint could not be written."""


@dataclass(frozen=True)
class Snapshot:
    """State of one step, to be written as a checkpoint."""

    step: int
    """Steps trained."""
    state: StateDict
    """Tensors of this rank."""
    progress: RankProgress
    """Sums and counts of this rank."""
    make_manifest: Callable[[list[RankProgress]], CheckpointManifest]
    """Makes the manifest from the progress of all ranks."""
    documents: dict[str, str]
    """File name -> text of the files beside the tensors."""
    best_step: int | None = None
    """Step of the best checkpoint, this one included; None where there is none."""


def write_checkpoint(
    checkpoints: Checkpoints, snapshot: Snapshot, keep: int, group: dist.ProcessGroup
) -> None:
    """Writes and publishes one checkpoint; every rank calls it.

    Args:
        checkpoints: the run's checkpoints.
        snapshot: the state to write.
        keep: number of newest checkpoints that are kept.
        group: gloo process group of this write's collectives.

    Raises:
        CheckpointWriteError: on every rank; checkpoints published before are unchanged.
    """
    folder = checkpoints.partial(snapshot.step)
    try:
        ranks = _on_all_ranks(lambda: _begin(checkpoints, snapshot), group)
        checksums = _on_all_ranks(lambda: _write_tensors(snapshot, folder, group), group)
        _on_all_ranks(lambda: _publish(checkpoints, snapshot, ranks, checksums), group)
    except CheckpointWriteError as error:
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise CheckpointWriteError(
            f"the checkpoint of step {snapshot.step} could not be written below "
            f"'{checkpoints.path}': {error}{_what_remains(checkpoints)}"
        ) from error
    if rank() == 0:
        mark_best(checkpoints, snapshot.best_step)
        _retain(checkpoints, keep, snapshot.best_step)


def mark_best(checkpoints: Checkpoints, step: int | None) -> None:
    """Names the best checkpoint in the folder; the newest manifest names it too, should it fail."""
    try:
        checkpoints.mark_best(step)
    except OSError as error:
        logger.warning(
            "that step %s is the best could not be written below '%s': %s",
            step,
            checkpoints.path,
            error,
        )


def _begin(checkpoints: Checkpoints, snapshot: Snapshot) -> RankProgress:
    """Checks that the losses are finite, and creates the folder on rank 0."""
    losses = snapshot.progress.losses
    if bad := [name for name, total in losses.items() if not math.isfinite(total)]:
        raise CheckpointWriteError(f"{', '.join(bad)} was not finite in the steps before it")
    if rank() == 0:
        checkpoints.prepare(snapshot.step)
    return snapshot.progress


def _write_tensors(snapshot: Snapshot, folder: Path, group: dist.ProcessGroup) -> dict[str, str]:
    """Writes this rank's tensors; returns the checksums of its files."""
    write_tensors(snapshot.state, folder, group)
    return sha256_of_files(folder, (path.name for path in folder.glob(f"__{rank()}_*")))


def _publish(
    checkpoints: Checkpoints,
    snapshot: Snapshot,
    ranks: list[RankProgress],
    checksums_of_ranks: list[dict[str, str]],
) -> None:
    """Writes documents, manifest and checksums on rank 0, and publishes the folder."""
    if rank() != 0:
        return
    folder = checkpoints.partial(snapshot.step)
    texts = snapshot.documents | {MANIFEST: manifest_text(snapshot.make_manifest(ranks))}
    for name, text in texts.items():
        write_file(folder / name, text)
    checksums = sha256_of_files(folder, [DCP_METADATA, INDEX, *texts])
    for of_rank in checksums_of_ranks:
        checksums.update(of_rank)
    write_checksums(folder, checksums)
    assert {path.name for path in folder.iterdir()} == checksums.keys() | {CHECKSUMS}
    checkpoints.publish(snapshot.step)


def _retain(checkpoints: Checkpoints, keep: int, best_step: int | None) -> None:
    try:
        checkpoints.retain(keep, best_step)
    except OSError as error:  # the checkpoint that was just saved is there all the same
        logger.warning(
            "old checkpoints below '%s' could not be deleted: %s", checkpoints.path, error
        )


def _on_all_ranks(action: Callable[[], T], group: dist.ProcessGroup) -> list[T]:
    """Runs an action on every rank and returns the results of all ranks.

    Raises:
        CheckpointWriteError: on every rank, with the error of each rank where the action failed.
    """
    result, fault = None, None
    try:
        result = action()
    except CheckpointException as error:  # DCP gives every rank the errors of all ranks
        fault = "; ".join(
            f"rank {number}: {_first_line(cause[0])}"
            for number, cause in sorted(error.failures.items())
        )
    except Exception as error:  # raised again below, on every rank
        fault = f"rank {rank()}: {_first_line(error)}"
    outcomes: list[tuple[Any, str | None]] = gather_objects((result, fault), group)
    if faults := dict.fromkeys(fault for _, fault in outcomes if fault is not None):
        raise CheckpointWriteError("; ".join(faults))
    return [result for result, _ in outcomes]


def _first_line(error: BaseException) -> str:
    """Returns what the system said, where an error of torch came of it; else what the error says.

    Torch's writer of archives answers a full disk with ``unexpected pos 704 vs 598``.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    error = cause or error
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _what_remains(checkpoints: Checkpoints) -> str:
    """Describes the newest checkpoint and the free disk space."""
    try:
        published, place = checkpoints.published(), checkpoints.path
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free / 2**20
    except OSError as error:
        return f" (and the folder cannot be read: {error.strerror})"
    remains = f"'{published[-1].name}' remains the newest" if published else "there is none yet"
    return f" ({free:,.0f} MiB free there); {remains}"

"""Writes checkpoints beside the training: copy the state, go on training, write, publish."""

import math
import shutil
import sys
from collections.abc import Callable
from datetime import timedelta
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from tqdm import tqdm

from mail_torchrec.checkpoint.folder import SUMS, Checkpoints, digests, write_sums, write_synced
from mail_torchrec.checkpoint.manifest import NAME, Manifest, Rank
from mail_torchrec.checkpoint.settings import CheckpointSettings
from mail_torchrec.checkpoint.staging import Stager, State
from mail_torchrec.checkpoint.storage import write_tensors
from mail_torchrec.distributed.collectives import rank, world_size

T = TypeVar("T")

# How much later than another a rank may have written its part.
_PATIENCE = timedelta(minutes=30)


class SaveError(OSError):
    """A checkpoint could not be written."""


class Saver:
    """Saves the states of a run, one after the other. A context manager: it ends the write that is under way.

    Every rank calls its methods at the same steps. A write goes on in a thread; its collectives
    have a process group of their own.

    Args:
        checkpoints: where to.
        settings: how.
        documents: file name -> text of what goes into each checkpoint beside the tensors.
        tell: takes what is to be recorded of a failure.
        published: the step of the checkpoint that the run goes on from.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        settings: CheckpointSettings,
        documents: dict[str, str],
        tell: Callable[[dict[str, Any]], None],
        published: int | None = None,
    ) -> None:
        self._checkpoints, self._settings, self._documents, self._tell = (
            checkpoints,
            settings,
            documents,
            tell,
        )
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._stager = Stager()
        self._thread: Thread | None = None
        self._published = published
        self._error: SaveError | None = None
        self._broken: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            # After an error the other ranks may be gone, and with them what the write waits for.
            self._thread.join(None if error is None else self._settings.grace)
        self._stager.close()

    def prepare(self, state: State) -> None:
        """Makes the buffers of asynchronous writes beforehand."""
        if self._settings.mode == "async":
            self._stager.prepare(state)

    def save(
        self,
        step: int,
        state: State,
        mine: Rank,
        manifest_of: Callable[[list[Rank]], Manifest],
        *,
        wait: bool = False,
    ) -> None:
        """Saves a state, waiting for the write before first.

        Args:
            step: steps trained.
            state: the tensors.
            mine: what this rank counted.
            manifest_of: makes the manifest of what the ranks counted.
            wait: return when it is published, and do not train on without it.

        Raises:
            SaveError: on every rank, where a write failed that is waited for, or one before it and
                ``on_failure`` is ``stop``.
        """
        self.finish()
        if self._published == step:
            return
        if wait or self._settings.mode == "sync":
            self._write(step, state, mine, manifest_of)
            self._conclude(must=wait)
        else:
            self._thread = Thread(
                target=self._write,
                args=(step, self._stager.copy(state), mine, manifest_of),
                daemon=True,
            )
            self._thread.start()

    def finish(self) -> None:
        """Waits for the write that is under way.

        Raises:
            SaveError: it failed and ``on_failure`` is ``stop``.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._conclude(must=False)

    def _conclude(self, *, must: bool) -> None:
        if self._broken is not None:
            raise self._broken
        error, self._error = self._error, None
        if error is not None:
            self._tell({"checkpoint_failed": str(error)})
            if must or self._settings.on_failure == "stop":
                raise error

    def _write(
        self, step: int, state: State, mine: Rank, manifest_of: Callable[[list[Rank]], Manifest]
    ) -> None:
        try:
            write_checkpoint(
                self._checkpoints,
                step,
                state,
                mine,
                manifest_of,
                self._documents,
                self._settings.keep,
                self._group,
            )
            self._published = step
        except SaveError as error:
            self._error = error
            if rank() == 0:
                tqdm.write(f"WARNING: {error}", file=sys.stderr)
        except (
            Exception
        ) as error:  # the connections to the other ranks broke; the main thread raises it
            self._broken = error


def write_checkpoint(
    checkpoints: Checkpoints,
    step: int,
    state: State,
    mine: Rank,
    manifest_of: Callable[[list[Rank]], Manifest],
    documents: dict[str, str],
    keep: int,
    group: dist.ProcessGroup,
) -> None:
    """Writes and publishes one checkpoint; arguments as :meth:`Saver.save`.

    Raises:
        SaveError: on every rank; those published before are as they were.
    """
    folder = checkpoints.partial(step)

    def begin() -> Rank:
        if bad := [name for name, total in mine.losses.items() if not math.isfinite(total)]:
            raise SaveError(f"{', '.join(bad)} was not finite in the steps before it")
        if rank() == 0:
            checkpoints.prepare(step)
        return mine

    def write() -> dict[str, str]:
        write_tensors(state, folder, group)
        return digests(folder, (path.name for path in folder.glob(f"__{rank()}_*")))

    def publish() -> None:
        if rank() == 0:
            texts = documents | {NAME: manifest_of(ranks).model_dump_json(indent=1) + "\n"}
            for name, text in texts.items():
                write_synced(folder / name, text)
            for of_rank in sums:
                own.update(of_rank)
            write_sums(folder, own | digests(folder, [".metadata", *texts]))
            assert {path.name for path in folder.iterdir()} == own.keys() | {
                ".metadata",
                SUMS,
                *texts,
            }
            checkpoints.publish(step)

    own: dict[str, str] = {}
    try:
        ranks = _together(begin, group)
        sums = _together(write, group)
        _together(publish, group)
    except SaveError as error:
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise SaveError(
            f"the checkpoint of step {step} could not be written below '{checkpoints.path}': "
            f"{error}{_newest(checkpoints)}"
        ) from error
    if rank() == 0:
        _retain(checkpoints, keep)


def _retain(checkpoints: Checkpoints, keep: int) -> None:
    try:
        checkpoints.retain(keep)
    except OSError as error:  # what was just saved is there all the same
        tqdm.write(
            f"WARNING: old checkpoints below '{checkpoints.path}' could not be deleted: {error}",
            file=sys.stderr,
        )


def _together(action: Callable[[], T], group: dist.ProcessGroup) -> list[T]:
    """Does something on every rank.

    Returns:
        The ranks' results.

    Raises:
        SaveError: on every rank, what went wrong on which.
    """
    result, fault = None, None
    try:
        result = action()
    except CheckpointException as error:  # DCP tells every rank what went wrong on any
        fault = "; ".join(
            f"rank {number}: {_short(cause[0])}" for number, cause in sorted(error.failures.items())
        )
    except Exception as error:  # raised again below, on every rank
        fault = f"rank {rank()}: {_short(error)}"
    outcomes: list[Any] = [None] * world_size()
    dist.all_gather_object(outcomes, (result, fault), group=group)
    if faults := dict.fromkeys(fault for _, fault in outcomes if fault is not None):
        raise SaveError("; ".join(faults))
    return [result for result, _ in outcomes]


def _short(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _newest(checkpoints: Checkpoints) -> str:
    """What remains, and how much room there is."""
    published, place = checkpoints.published(), checkpoints.path
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**20
    remains = f"'{published[-1].name}' remains the newest" if published else "there is none yet"
    return f" ({free:,.0f} MiB free there); {remains}"

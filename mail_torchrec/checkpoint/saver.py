"""Saves checkpoints beside the training: copy the state, go on training, write, publish."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from threading import Thread
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from mail_torchrec.checkpoint.folder import Checkpoints
from mail_torchrec.checkpoint.settings import CheckpointSettings
from mail_torchrec.checkpoint.staging import Stager, StateDict
from mail_torchrec.checkpoint.writer import (
    CheckpointWriteError,
    Snapshot,
    mark_best,
    write_checkpoint,
)
from mail_torchrec.distributed.collectives import rank, world_size
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import writing

logger = get_logger(__name__)

_TIMEOUT = 600.0


class CheckpointSaver:
    """Saves the states of a run, one after the other.

    A context manager: on exit it waits for the write that is under way. Every rank calls its
    methods at the same steps. A write runs in a thread; its collectives have a process group of
    their own.

    Args:
        checkpoints: the run's checkpoints.
        settings: settings of the checkpoints.
        record_event: records a failure in the run's log.
        record_published: records on rank 0 that the checkpoint of a step was published.
        published_step: step of the checkpoint that the run resumed from.
        timeout: seconds that a write waits for another rank, which may have more to write.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        settings: CheckpointSettings,
        record_event: Callable[[dict[str, Any]], None],
        record_published: Callable[[int], None],
        published_step: int | None = None,
        *,
        timeout: float = _TIMEOUT,
    ) -> None:
        self._checkpoints, self._settings = checkpoints, settings
        self._record_event, self._record_published = record_event, record_published
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._stager = Stager()
        self._thread: Thread | None = None
        # None where this process has not used CUDA.
        self._gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self.published_step = published_step
        """Step of the newest checkpoint; None before the first."""
        self._write_error: CheckpointWriteError | None = None
        self._transport_error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            # After an error the other ranks may be gone, and the write would wait for them.
            self._thread.join(None if error is None else self._settings.grace)
        self._stager.close()

    def prepare(self, state: StateDict) -> None:
        """Allocates the buffers of asynchronous writes."""
        if self._settings.mode == "async":
            self._stager.prepare(state)

    def save(self, snapshot: Snapshot, *, wait: bool = False) -> None:
        """Saves a state, after the previous write has ended.

        Args:
            snapshot: the state of a step.
            wait: whether to return only when the checkpoint is published, and to fail without it.

        Raises:
            CheckpointWriteError: on every rank, where a write failed that is waited for, or the
                previous one failed and ``on_failure`` is ``stop``.
        """
        self.finish()
        if self.published_step == snapshot.step:
            if rank() == 0:
                mark_best(self._checkpoints, snapshot.best_step)
            return
        if wait or self._settings.mode == "sync":
            self._write(snapshot)
            self._handle_failure(must_succeed=wait)
        else:
            staged = replace(snapshot, state=self._stager.copy(snapshot.state))
            self._thread = Thread(target=self._write_beside, args=(staged,), daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Waits for the write that is under way.

        Raises:
            CheckpointWriteError: it failed and ``on_failure`` is ``stop``.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._handle_failure(must_succeed=False)

    def _handle_failure(self, *, must_succeed: bool) -> None:
        """Records the failure of the last write, and raises it where the run must stop."""
        if self._transport_error is not None:
            raise self._transport_error
        error, self._write_error = self._write_error, None
        if error is not None:
            self._record_event({"checkpoint_failed": str(error)})
            if must_succeed or self._settings.on_failure == "stop":
                raise error

    def _write_beside(self, snapshot: Snapshot) -> None:
        """Writes from another thread, whose device would else be the first of the host."""
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)
        self._write(snapshot)

    def _write(self, snapshot: Snapshot) -> None:
        # With several ranks it waits for the others too, whom the group's timeout is for.
        alone = writing(self._checkpoints.path) if world_size() == 1 else nullcontext()
        try:
            with alone:
                write_checkpoint(self._checkpoints, snapshot, self._settings.keep, self._group)
            self.published_step = snapshot.step
            if rank() == 0:
                self._record_published(snapshot.step)
        except CheckpointWriteError as error:
            self._write_error = error
            logger.warning("%s", error)
        except Exception as error:  # connections to other ranks broke; the main thread raises it
            self._transport_error = error

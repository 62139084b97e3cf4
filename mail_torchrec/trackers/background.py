"""Trackers told by a thread of their own, so that a slow or failing service never holds a run."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Condition, Event, Thread

from mail_torchrec.trackers.registry import build_tracker
from mail_torchrec.trackers.settings import TrackerSettings
from mail_torchrec.trackers.tracker import Outcome, RunDescription, TrackedValue
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.uris import redact

logger = get_logger(__name__)

_MAX_WAITING = 100_000
"""Most numbers that wait for a service; of more the oldest are dropped."""
_RETRY_SECONDS = 10.0


class BackgroundTracker:
    """Hands a run's numbers to a tracker in a thread; what it does not take is offered again.

    Args:
        settings: of the tracker.
        run: the run.
        run_id: the service's id of a run that goes on; None for one that begins.
        keep_id: called in the thread with the service's id of the run.
        retry_seconds: pause after a failure.

    Raises:
        ValueError: the settings do not fit.
    """

    def __init__(
        self,
        settings: TrackerSettings,
        run: RunDescription,
        run_id: str | None,
        keep_id: Callable[[str], None],
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self._settings, self._run, self._run_id, self._keep_id = settings, run, run_id, keep_id
        self._retry_seconds = retry_seconds
        self._tracker = build_tracker(settings)
        self._waiting: deque[TrackedValue] = deque(maxlen=_MAX_WAITING)
        self._num_offered, self._num_taken = 0, 0
        self._end: tuple[Outcome, Sequence[Path]] | None = None
        self._changed = Condition()
        self._has_failed = False
        self._given_up = Event()
        self._thread = Thread(target=self._work, name=f"tracker {settings.name}", daemon=True)

    def start(self) -> None:
        """Starts the thread, which tells the service of the run."""
        self._thread.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Offers numbers of one step; returns at once."""
        now = time.time_ns() // 1_000_000
        with self._changed:
            self._waiting.extend(
                TrackedValue(name, float(value), step, now) for name, value in values.items()
            )
            self._num_offered += len(values)
            self._changed.notify()

    def close(self, outcome: Outcome, files: Sequence[Path]) -> None:
        """Ends the run at the service; waits for it, and warns of what it did not take."""
        with self._changed:
            self._end = outcome, files
            self._changed.notify()
        self._thread.join(self._settings.close_seconds)
        is_late = self._thread.is_alive()
        self._given_up.set()
        if lost := self._num_offered - self._num_taken:
            logger.warning("tracker '%s' lacks %d numbers of the run", self._settings.name, lost)
        if is_late:
            logger.warning(
                "tracker '%s' did not take the end of the run within %g seconds "
                "(trackers.close_seconds): its run there stays open",
                self._settings.name,
                self._settings.close_seconds,
            )

    def _work(self) -> None:
        """Does one call after another until the run has ended at the service."""
        self._until_it_succeeds(self._start)
        while not self._given_up.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._end)
                values, end = list(self._waiting), self._end
            if values:
                self._until_it_succeeds(partial(self._log, values))
            elif end is not None:
                self._until_it_succeeds(partial(self._tracker.finish, *end))
                return

    def _start(self) -> None:
        self._keep_id(self._tracker.start(self._run, self._run_id))

    def _log(self, values: list[TrackedValue]) -> None:
        self._tracker.log(values)
        with self._changed:
            # The oldest may have been dropped meanwhile to make room for later ones.
            for value in values:
                if self._waiting and self._waiting[0] is value:
                    self._waiting.popleft()
            self._num_taken += len(values)

    def _until_it_succeeds(self, call: Callable[[], None]) -> None:
        """Repeats a call after a pause until it succeeds, or the run has ended without it."""
        while not self._given_up.is_set():
            try:
                call()
            except Exception as error:  # of a service's client, which may raise anything
                self._warn(error)
                self._given_up.wait(self._retry_seconds)
            else:
                if self._has_failed:
                    logger.info("tracker '%s' is told of the run again", self._settings.name)
                self._has_failed = False
                return

    def _warn(self, error: Exception) -> None:
        if not self._has_failed:
            message = redact(f"{type(error).__name__}: {error}")
            logger.warning(
                "tracker '%s' cannot be told of the run (%s): the run goes on, and its numbers "
                "wait in memory until it can",
                self._settings.name,
                message,
            )
        self._has_failed = True

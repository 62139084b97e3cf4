"""Signs of work while ranks wait for work of rank 0: it may take hours, but not stand still.

Rank 0 may read all of the training data while the others wait in one broadcast, so that no timeout
of a collective can tell whether it works, is stopped, or hangs; nor whether a rank that is not
there yet does.
"""

import json
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

from mail_torchrec.distributed.collectives import WAITING_FOR_RANK_0, WAITING_FOR_RANKS
from mail_torchrec.distributed.idle_watchdog import WorkMeter
from mail_torchrec.distributed.rank_status import place_of_main_thread
from mail_torchrec.utils.spans import current_span

_POLL_SECONDS = 0.5
# A rank knows best why it stands still, and is given time to say so first.
_MARGIN = 3.0


class Heartbeat:
    """Tells what this rank does, and watches those that it waits for.

    All ranks watch rank 0, which watches all. The thread makes no call to the store, which may
    block for ever: rank 0 may host it.

    Args:
        rank: this process's rank.
        world_size: number of ranks.
        timeout: seconds without a sign of work of a rank after which one that waits for it ends.
        end: ends this rank with a message.
    """

    def __init__(
        self, rank: int, world_size: int, timeout: float, end: Callable[[str], None]
    ) -> None:
        self._rank, self._timeout, self._end = rank, timeout, end
        self._meter, self._beats, self._span_since = WorkMeter(), 0, 0.0
        watched = range(1, world_size) if rank == 0 else [0]
        self._heard = dict.fromkeys(watched, b"")
        self._silence = dict.fromkeys(watched, 0.0)
        self._stopped = Event()
        self._thread = Thread(target=self._watch, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()

    def exchange(self, store: Any) -> None:
        """Tells and asks the store of the process group; to be called all the time."""
        span = current_span()
        # A rank that waits has nothing to do.
        if self._meter.has_worked() or span.since != self._span_since or _waits():
            self._beats, self._span_since = self._beats + 1, span.since
            beat = json.dumps([self._beats, span.name, place_of_main_thread()])
            store.set(_key(self._rank), beat)
        for rank in self._heard if _waits() else ():
            if store.check([_key(rank)]) and (heard := store.get(_key(rank))) != self._heard[rank]:
                self._heard[rank], self._silence[rank] = heard, 0.0

    def _watch(self) -> None:
        """Counts the silence by polls: a host that was suspended has waited for nobody."""
        while not self._stopped.wait(_POLL_SECONDS):
            waits = _waits()
            for rank, silence in self._silence.items():
                self._silence[rank] = silence + _POLL_SECONDS if waits else 0.0
            silent = max(self._silence, key=self._silence.__getitem__)
            if self._silence[silent] >= self._timeout + _MARGIN:
                self._end(
                    f"rank {silent} has not worked for {self._timeout:g} s (train.timeout)"
                    f"{self._last(silent)}: it is stopped (SIGSTOP), hangs, or its host is gone"
                )
                return

    def _last(self, rank: int) -> str:
        if not self._heard[rank]:
            return ""
        _, span, place = json.loads(self._heard[rank])
        return f", and was last in '{span or 'no span'}' at {place}"


def _key(rank: int) -> str:
    return f"mail_torchrec/heartbeat/{rank}"


def _waits() -> bool:
    return current_span().name.endswith((WAITING_FOR_RANK_0, WAITING_FOR_RANKS))

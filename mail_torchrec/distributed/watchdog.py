"""No rank waits for ever, and every rank can say why it ended.

Collectives say little when a rank is missing: gloo names a port, NCCL aborts the process. So each
rank has a thread that looks, twice a second, whether some rank has announced trouble in the process
group's store. The rank that meets the trouble first announces it: its own error, or that a
collective broke or timed out. Then the roll is called: each thread answers with its rank's phase
and place in the code, and who does not answer is gone. Errors of the transport become one
:class:`LostRankError` that tells all this; a rank that no error reaches, because it waits inside a
kernel or is stuck elsewhere, is ended by its thread.
"""

import json
import os
import re
import sys
import time
from collections import defaultdict
from datetime import timedelta
from threading import Event, Thread, main_thread
from traceback import StackSummary, extract_stack, extract_tb
from typing import Any

import torch.distributed as dist

from mail_torchrec.distributed.launcher import launcher_keeps_store, tell_launcher
from mail_torchrec.utils.spans import current_span

_LOOK_EVERY = 0.5
# How long the roll is waited for, and how long a rank has to end by itself: seconds.
_ROLL, _GRACE = 3.0, 15.0
# Who merely waited for a failed rank ends after it, so that the launcher's report begins with that
# one.
_AFTER_YOU = 1.5
_TROUBLE, _SUMMARY = "mail_torchrec/trouble", "mail_torchrec/summary"
_TRANSPORT = re.compile(r"gloo|nccl|c10d|tcpstore|processgroup|pair closure", re.IGNORECASE)
_TIMED_OUT = re.compile(r"timed? ?out", re.IGNORECASE)


class LostRankError(ConnectionError):
    """Another rank failed, is gone, or did not come to a collective in time."""


def is_transport_error(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, comes from the connections between ranks."""
    while error is not None:
        if isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and _TRANSPORT.search(str(error))
        ):
            return True
        error = error.__cause__
    return False


class Watch:
    """Watches over one process group from this rank.

    Args:
        store: of the process group.
        rank: this one.
        world_size: ranks.
        timeout: seconds that a collective may wait.
        judges: whether a phase that lasts longer than the timeout is trouble by itself: where the
            transport raises no error.
    """

    def __init__(
        self, store: Any, rank: int, world_size: int, timeout: float, *, judges: bool
    ) -> None:
        self._store, self._rank, self._world_size, self._timeout, self._judges = (
            store,
            rank,
            world_size,
            timeout,
            judges,
        )
        self._done = Event()
        self._raised_at, self._told = "", ""
        # A connection of its own: the main thread may sit in a call to the store.
        self._thread = Thread(target=self._look, args=(store.clone(),), name="watch", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it."""
        self._done.set()
        self._thread.join()

    def explain(self, error: Exception) -> Exception:
        """Announces an error that is about to end this rank, and returns what to raise: itself, or what the transport's error means."""
        from_transport = is_transport_error(error)
        self._raised_at = _place(extract_tb(error.__traceback__))
        try:
            if not (from_transport and self._told):  # what happened is not known yet
                timed_out = bool(_TIMED_OUT.search(str(error)))
                self._tell(
                    self._store,
                    self._announce(
                        self._store, None if from_transport else _in_words(error), timed_out
                    ),
                )
        except dist.DistError:  # the store went with the process that kept it
            self._told = self._told or (
                f"rank {self._rank} lost another rank in '{_phase()}', and with it the store that "
                "would tell more: rank 0 or its launcher "
                "is gone (killed, out of memory, or its host)"
            )
        if not from_transport:
            return error
        time.sleep(_AFTER_YOU)
        return LostRankError(self._told)

    def _announce(self, store: Any, error: str | None, timed_out: bool) -> dict[str, Any]:
        """This rank's trouble, or that of the rank that was first."""
        mine = json.dumps(
            {
                "rank": self._rank,
                "phase": _phase(),
                "error": error,
                "timed_out": timed_out,
                "timeout": self._timeout,
            }
        )
        first: dict[str, Any] = json.loads(store.compare_set(_TROUBLE, "", mine))
        if first["rank"] == self._rank:  # so all know before this rank ends, with the store perhaps
            store.set(_SUMMARY, self._call_roll(store))
        return first

    def _tell(self, store: Any, trouble: dict[str, Any]) -> None:
        """Puts what happened into ``_told``."""
        told = f"rank {trouble['rank']} failed in '{trouble['phase']}': {trouble['error']}"
        if trouble["error"] is None:
            waited = (
                f"waited {trouble['timeout']:g} s (train.timeout) for other ranks"
                if trouble["timed_out"]
                else "lost another rank"
            )
            told = f"rank {trouble['rank']} {waited} in '{trouble['phase']}'"
            try:
                store.wait([_SUMMARY], timedelta(seconds=_ROLL + 1))
                told += f": {store.get(_SUMMARY).decode()}"
            except dist.DistError:
                told += ", and has ended since without telling more"
        self._told = told

    def _call_roll(self, store: Any) -> str:
        """What each rank is busy with, and which do not answer."""
        until = time.monotonic() + _ROLL
        missing, busy = set(range(self._world_size)), defaultdict[tuple[str, str], list[int]](list)
        while missing and time.monotonic() < until:
            for rank in [rank for rank in missing if store.check([_answer(rank)])]:
                missing.remove(rank)
                answer = json.loads(store.get(_answer(rank)))
                busy[answer["phase"], answer["place"]].append(rank)
            time.sleep(_LOOK_EVERY / 5)
        told = (
            [f"no answer from {_ranks(missing)}: killed, out of memory, or the host is gone"]
            if missing
            else []
        )
        alone_first = sorted(busy.items(), key=lambda item: len(item[1]))
        told += [f"{_ranks(ranks)} in '{name}' at {place}" for (name, place), ranks in alone_first]
        return "; ".join(told)

    def _look(self, store: Any) -> None:
        while not self._done.wait(_LOOK_EVERY):
            phase = current_span()
            overdue = self._judges and not phase.patient and phase.seconds > self._timeout
            try:
                if overdue or store.check([_TROUBLE]):
                    self._answer(store)
                    self._tell(
                        store,
                        self._announce(store, None, timed_out=True)
                        if overdue
                        else json.loads(store.get(_TROUBLE)),
                    )
            except dist.DistError:  # the store is gone
                if not self._told and not launcher_keeps_store():
                    return  # with rank 0: this rank's next collective fails and says so
                if not self._told and not self._done.is_set():
                    self._end(
                        "the launcher is gone (killed, or its host)"
                    )  # else it would train on, and hold the run directory
            if self._told and not self._done.wait(0 if overdue else _GRACE):
                self._end(self._told)

    def _answer(self, store: Any) -> None:
        place = self._raised_at or _place(
            extract_stack(sys._current_frames()[main_thread().ident or 0])
        )
        store.set(_answer(self._rank), json.dumps({"phase": _phase(), "place": place}))

    def _end(self, message: str) -> None:
        """Ends a process whose main thread does not come back."""
        sys.stderr.write(f"Error: {message}; rank {self._rank}, in '{_phase()}', is ended\n")
        tell_launcher(LostRankError(message))
        sys.stderr.flush()
        os._exit(1)


def _answer(rank: int) -> str:
    return f"mail_torchrec/answer/{rank}"


def _phase() -> str:
    return current_span().name or "between phases"


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _place(stack: StackSummary) -> str:
    """The innermost line of this package's, and the innermost of all."""
    ours = [frame for frame in stack if f"{os.sep}mail_torchrec{os.sep}" in frame.filename]
    lines = dict.fromkeys(
        f"{'/'.join(frame.filename.split(os.sep)[-2:])}:{frame.lineno}"
        for frame in (*ours[-1:], *stack[-1:])
    )
    return " > ".join(lines)


def _ranks(ranks: "set[int] | list[int]") -> str:
    """``rank 3``, ``ranks 0-2, 5``."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ("ranks " if len(ranks) > 1 else "rank ") + ", ".join(
        f"{a}" if a == b else f"{a}-{b}" for a, b in runs
    )

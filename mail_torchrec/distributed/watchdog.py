"""Watchdog over the ranks of a job: no rank waits for ever, and every error names its cause.

Collectives say little when a rank is missing: gloo names a port, NCCL aborts the process. So each
rank runs a thread that checks twice a second whether some rank has reported a failure in the
process group's store. The rank that fails first reports it: its own error, or that a collective
broke or timed out. Then every rank's thread stores its status: its open span and its place in the
code. A rank without a status is gone. Errors of the transport become one :class:`LostRankError`
with all of this; a rank that no error reaches, because it waits inside a kernel or is stuck
elsewhere, is ended by its thread.
"""

import json
import os
import re
import sys
import time
from collections import defaultdict
from contextlib import suppress
from datetime import timedelta
from threading import Event, Thread
from traceback import extract_tb
from typing import Any

import torch.distributed as dist

from mail_torchrec.distributed.heartbeat import Heartbeat
from mail_torchrec.distributed.idle_watchdog import describe_readers
from mail_torchrec.distributed.launcher import launcher_hosts_store, report_error_to_launcher
from mail_torchrec.distributed.rank_status import format_status, place_in, place_of_main_thread
from mail_torchrec.utils.logging import write_unlocked
from mail_torchrec.utils.spans import current_span

_POLL_SECONDS = 0.5
# Seconds to wait for the status of all ranks, and for a rank to end by itself.
_STATUS_TIMEOUT, _GRACE = 3.0, 15.0
# Seconds that the store may take to learn of a failure and to explain it. The process that hosts it
# may be stopped (rank 0, without torchrun); its clients then wait for ever, whatever their timeout.
_STORE_TIMEOUT = 10.0
# Ranks that merely waited for a failed rank end this many seconds after it, so that the launcher's
# report begins with the failed one.
_EXIT_DELAY = 1.5
_FAILURE, _SUMMARY = "mail_torchrec/failure", "mail_torchrec/summary"
_TRANSPORT = re.compile(r"gloo|nccl|c10d|tcpstore|processgroup|pair closure", re.IGNORECASE)
_TIMED_OUT = re.compile(r"timed? ?out", re.IGNORECASE)


class LostRankError(ConnectionError):
    """Another rank failed, is gone, or did not come to a collective in time."""


def is_transport_error(error: BaseException | None) -> bool:
    """Returns whether an error or its cause comes from the connections between ranks."""
    while error is not None:
        if isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and _TRANSPORT.search(str(error))
        ):
            return True
        error = error.__cause__
    return False


class Watchdog:
    """Watches the ranks of one process group from a thread of this rank.

    Args:
        store: of the process group.
        rank: this process's rank.
        world_size: number of ranks.
        timeout: seconds that a collective may wait.
        enforce_timeout: whether a span that waits for other ranks longer than the timeout is a
            failure by itself, for transports that raise no error.
    """

    def __init__(
        self, store: Any, rank: int, world_size: int, timeout: float, *, enforce_timeout: bool
    ) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._timeout, self._enforce_timeout = timeout, enforce_timeout
        self._stopped = Event()
        self._raised_at, self._explanation, self._fault = "", "", ""
        self._heartbeat = Heartbeat(rank, world_size, timeout, self.end_rank)
        # A connection of its own: the main thread may be blocked in a call to the store.
        self._thread = Thread(target=self._watch, args=(store.clone(),), name="watch", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()
        self._heartbeat.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._heartbeat.stop()
        self._stopped.set()
        self._thread.join(_STATUS_TIMEOUT)

    def end_rank(self, message: str) -> None:
        """Ends this rank, whose main thread is blocked, and with it the others.

        Args:
            message: the reason, which every rank tells.
        """
        self._fault = message
        self._thread.join(_STORE_TIMEOUT)  # which ends the process
        if not self._stopped.is_set():  # the store is gone, or does not answer
            self._end_process(message)

    def explain(self, error: Exception) -> Exception:
        """Reports an error that is about to end this rank, and returns the error to raise.

        That is the error itself, or for an error of the transport a :class:`LostRankError` which
        says what happened to the other ranks.
        """
        from_transport = is_transport_error(error)
        self._raised_at = place_in(extract_tb(error.__traceback__))
        if not (from_transport and self._explanation):  # the cause is not known yet
            message = None if from_transport else f"{type(error).__name__}: {error}"
            timed_out = bool(_TIMED_OUT.search(str(error)))
            asks = Thread(target=self._ask_store, args=(message, timed_out), daemon=True)
            asks.start()
            asks.join(_STORE_TIMEOUT)
        if not from_transport:
            return error
        self._explanation = self._explanation or (
            f"rank {self._rank} lost another rank in '{_span_name()}', and with it the store that "
            "would tell more: rank 0 or its launcher is gone (killed, out of memory, or its host) "
            "or stopped"
        )
        time.sleep(_EXIT_DELAY)
        return LostRankError(self._explanation)

    def _ask_store(self, message: str | None, timed_out: bool) -> None:
        """Reports an error of this rank, and learns what happened first."""
        with suppress(dist.DistError):  # the store went with the process that hosted it
            self._explain(self._store, self._report(self._store, message, timed_out))

    def _report(self, store: Any, message: str | None, timed_out: bool) -> dict[str, Any]:
        """Stores this rank's failure, unless another rank was first; returns the first failure."""
        failure = {
            "rank": self._rank,
            "span": _span_name(),
            "error": message,
            "timed_out": timed_out,
            "timeout": self._timeout,
        }
        first: dict[str, Any] = json.loads(store.compare_set(_FAILURE, "", json.dumps(failure)))
        if first["rank"] == self._rank:
            # Before this rank ends, with the store perhaps.
            store.set(_SUMMARY, self._collect_status(store))
        return first

    def _explain(self, store: Any, failure: dict[str, Any]) -> None:
        """Describes the first failure in ``_explanation``."""
        where = f"in '{failure['span']}'"
        if failure["error"] is not None:
            self._explanation = f"rank {failure['rank']} failed {where}: {failure['error']}"
            return
        happened = (
            f"waited {failure['timeout']:g} s (train.timeout) for other ranks"
            if failure["timed_out"]
            else "lost another rank"
        )
        explanation = f"rank {failure['rank']} {happened} {where}"
        try:
            store.wait([_SUMMARY], timedelta(seconds=_STATUS_TIMEOUT + 1))
            explanation += f": {store.get(_SUMMARY).decode()}"
        except dist.DistError:
            explanation += ", and has ended since without telling more"
        self._explanation = explanation

    def _collect_status(self, store: Any) -> str:
        """Waits for the status of all ranks; describes who does what, and who is missing."""
        deadline = time.monotonic() + _STATUS_TIMEOUT
        missing = set(range(self._world_size))
        ranks_at: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        while missing and time.monotonic() < deadline:
            for rank in [rank for rank in missing if store.check([_status_key(rank)])]:
                missing.remove(rank)
                status = json.loads(store.get(_status_key(rank)))
                ranks_at[status["span"], status["place"]].append(rank)
            time.sleep(_POLL_SECONDS / 5)
        return format_status(missing, ranks_at)

    def _watch(self, store: Any) -> None:
        """Checks for failures until the watchdog is stopped or ends the process."""
        while not self._stopped.wait(_POLL_SECONDS):
            overdue = self._is_overdue()
            try:
                self._heartbeat.exchange(store)
                if self._fault or overdue or store.check([_FAILURE]):
                    self._store_status(store)
                    failure = (
                        self._report(store, self._fault or None, timed_out=overdue)
                        if self._fault or overdue
                        else json.loads(store.get(_FAILURE))
                    )
                    self._explain(store, failure)
            except dist.DistError:  # the store is gone
                self._explanation = self._explanation or self._fault
                if not self._explanation and not launcher_hosts_store():
                    return  # with rank 0: this rank's next collective fails and says so
                if not self._explanation and not self._stopped.is_set():
                    # Else it would train on without a launcher, and hold the run directory.
                    self._end_process("the launcher is gone (killed, or its host)")
            grace = 0 if overdue or self._fault else _GRACE
            if self._explanation and not self._stopped.wait(grace):
                self._end_process(self._explanation)

    def _is_overdue(self) -> bool:
        """Returns whether the open span waits for other ranks, for longer than it may.

        Other spans may last: metrics of many rows, the reading of a slow file, a checkpoint.
        """
        span = current_span()
        waits = span.collective and not (span.patient or span.reads)
        return self._enforce_timeout and waits and span.seconds > self._timeout

    def _store_status(self, store: Any) -> None:
        """Stores this rank's open span and its place in the code."""
        place = self._raised_at or place_of_main_thread()
        if current_span().reads:
            place += f", where {describe_readers()}"
        store.set(_status_key(self._rank), json.dumps({"span": _span_name(), "place": place}))

    def _end_process(self, message: str) -> None:
        """Ends a process whose main thread is blocked for ever."""
        write_unlocked(f"Error: {message}; rank {self._rank}, in '{_span_name()}', is ended")
        report_error_to_launcher(LostRankError(message))
        sys.stderr.flush()
        os._exit(1)


def _status_key(rank: int) -> str:
    return f"mail_torchrec/status/{rank}"


def _span_name() -> str:
    return current_span().name or "between spans"

"""Runs steps once each: finished steps are kept, half-finished ones repeated, one progress bar."""

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

from mail_torchrec.utils.progress import progress_bar, refresh_seconds

StepRecord = dict[str, Any]
"""The counts, seconds and peak memory that a step leaves, as JSON."""
RECORD_FILE = "record.json"


class ResumableSteps:
    """Runs steps that write one folder each; a context manager that closes its progress bar.

    Args:
        work: folder of the steps' folders.
        num_steps: steps of the whole run, for the progress bar.
        query_progress: percentage of the running query that is done, less than 0 where unknown.
    """

    def __init__(self, work: Path, num_steps: int, query_progress: Callable[[], float]) -> None:
        self._work, self._query_progress = work, query_progress
        self.records: dict[str, StepRecord] = {}
        self._bar: Any = progress_bar(desc="prepare", total=num_steps, unit="step", leave=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def folder(self, name: str) -> Path:
        """Returns the folder of a step."""
        return self._work / name

    def run(self, name: str, step: Callable[[Path], StepRecord]) -> StepRecord:
        """Runs a step unless it is finished, and returns its record.

        Args:
            name: of the step and of its folder.
            step: writes into the folder it is given and returns what should be kept about it. The
                folder bears its final name only when everything is in it.
        """
        record_file = self.folder(name) / RECORD_FILE
        if not record_file.is_file():
            self._run_anew(name, step)
        self._bar.update()
        self.records[name] = json.loads(record_file.read_text())
        return self.records[name]

    def _run_anew(self, name: str, step: Callable[[Path], StepRecord]) -> None:
        unfinished = self._work / f"{name}.half"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        start = time.perf_counter()
        with self._progress_shown(name):
            record = step(unfinished)
        seconds = round(time.perf_counter() - start, 3)
        record |= {"seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}
        (unfinished / RECORD_FILE).write_text(json.dumps(record))
        os.replace(unfinished, self.folder(name))

    @contextmanager
    def _progress_shown(self, name: str) -> Iterator[None]:
        """Names the step on the bar, and updates its query's progress from a second thread."""
        self._bar.set_description(name, refresh=False)
        done = Event()

        def update() -> None:
            while not done.wait(refresh_seconds()):
                percent = self._query_progress()
                self._bar.set_postfix_str(f"query at {percent:.0f} %" if percent >= 0 else "")

        thread = Thread(target=update, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._bar.set_postfix_str("", refresh=False)


def peak_rss_bytes() -> int:
    """Returns the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024

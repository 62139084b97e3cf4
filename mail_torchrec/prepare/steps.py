"""Steps that are done once: what is finished is kept, what was half done is done again, and all are shown on one progress bar."""

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

from tqdm import tqdm

from mail_torchrec.utils.logging import bar_interval

Record = dict[str, Any]
RECORD = "record.json"


class Steps:
    """Runs steps that write one folder each.

    A context manager: it closes its bar.

    Args:
        work: folder of the steps' folders.
        count: steps of the whole run.
        progress: how far the running step is, 0 to 100, less than 0 where nobody knows.
    """

    def __init__(self, work: Path, count: int, progress: Callable[[], float]) -> None:
        self._work, self._progress, self.records = work, progress, dict[str, Record]()
        self._bar: Any = tqdm(
            total=count, unit="step", dynamic_ncols=True, mininterval=bar_interval()
        )

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
        """Where a finished step wrote."""
        return self._work / name

    def do(self, name: str, make: Callable[[Path], Record]) -> Record:
        """Runs a step unless it is finished.

        Args:
            name: of the step and of its folder.
            make: writes into the folder it is given and returns what should be kept about it. The
                folder bears its final name only when everything is in it.
        """
        kept = self.folder(name) / RECORD
        if not kept.is_file():
            half = self._work / f"{name}.half"
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            start = time.perf_counter()
            with self._shown(name):
                record = make(half)
            record |= {
                "seconds": round(time.perf_counter() - start, 3),
                "peak_rss_bytes": peak_rss_bytes(),
            }
            (half / RECORD).write_text(json.dumps(record))
            os.replace(half, self.folder(name))
        self._bar.update()
        self.records[name] = json.loads(kept.read_text())
        return self.records[name]

    @contextmanager
    def _shown(self, name: str) -> Iterator[None]:
        """Names the step on the bar, and says how far its query is while another thread waits for the engine."""
        self._bar.set_description(name, refresh=False)
        done = Event()

        def watch() -> None:
            while not done.wait(bar_interval()):
                percent = self._progress()
                self._bar.set_postfix_str(f"query at {percent:.0f} %" if percent >= 0 else "")

        thread = Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._bar.set_postfix_str("", refresh=False)


def peak_rss_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024

"""Watch over the steps of a training: their time by part always, and a profile of some of them."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch.profiler import profile

from mail_torchrec.distributed.collectives import gather_objects, rank, world_size
from mail_torchrec.profiling.bottleneck import RunFacts, TimeShares, bottleneck_line, time_shares
from mail_torchrec.profiling.profiler import start_profiler, stop_profiler
from mail_torchrec.profiling.settings import ProfileSettings
from mail_torchrec.profiling.span_table import STEP, mean_times, table_json, table_markdown
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.spans import collect_spans, span

logger = get_logger(__name__)

T = TypeVar("T")

_WARM_UP = 3
# A GPU has to be waited for at the borders of spans, which costs overlap: one step in so many.
_CUDA_SAMPLE = 50


class StepWatch:
    """Measures the steps of a training on this rank; every rank has one.

    A context manager around the run: it says at the end what was found.

    Args:
        settings: steps to profile; None profiles none.
        folder: for the traces and the table.
        num_done: steps that were done before this process began.
        num_steps: steps of the whole run.
        device: of this rank.
        facts: for the advice.
    """

    def __init__(
        self,
        settings: ProfileSettings | None,
        folder: Path,
        num_done: int,
        num_steps: int,
        device: torch.device,
        facts: RunFacts,
    ) -> None:
        self._settings, self._folder, self._device = settings, folder, device
        self._facts, self._done, self._num_steps = facts, num_done, num_steps
        self._first = num_done + 1
        self._profiler: profile | None = None
        self._profiled_from = 0
        self._spans: defaultdict[str, float] = defaultdict(float)
        self._sampled = self._steps = 0
        self._sampled_seconds = self._seconds = 0.0
        self._since: float | None = None
        self._lines: list[str] = []
        self._settle: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        if self._settings and (warning := self._settings.warning(self._done, self._num_steps)):
            logger.warning("%s", warning)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._profiler is not None:  # the run ends amid the profiled steps
            profiler, self._profiler = self._profiler, None
            if isinstance(error, SystemExit):  # of all ranks together, after a signal
                self._settle()
            stop_profiler(profiler, self._device, self._folder)
        if error is None:
            for line in self._lines:
                logger.info("%s", line)

    def steps(self, steps: Iterator[T], settle: Callable[[], None] = lambda: None) -> Iterator[T]:
        """Yields the results of steps, which run while the next one is asked for.

        Args:
            steps: that begin as their results are asked for.
            settle: waits for collectives that a step leaves under way.
        """
        self._settle = settle
        while True:
            self._before_step()
            start = time.perf_counter()
            with self._collected():
                outputs = next(steps, None)
            if outputs is None:
                self._discard_empty_window()
                return
            self._after_step(start)
            yield outputs
            self._close_window()

    def finish(self) -> dict[str, Any]:
        """Ends the measurement behind the last step; every rank calls it.

        Returns:
            Record of the time by part, a mean over ranks; empty where there were too few steps.
        """
        self._close_window(at_end=True)
        measured: list[tuple[dict[str, float], float, int]] = gather_objects(self._measured())
        steps = measured[0][2]
        if steps:
            spans: defaultdict[str, float] = defaultdict(float)
            for own, _, _ in measured:
                for name, value in own.items():
                    spans[name] += value
            seconds = sum(seconds for _, seconds, _ in measured)
            shares = time_shares(spans, seconds)
            found = TimeShares(steps, seconds / steps / len(measured), shares)
        else:
            found = TimeShares(0)
        self._lines.append(bottleneck_line(found, self._facts))
        return {"step_time": asdict(found)} if steps else {}

    def _measured(self) -> tuple[dict[str, float], float, int]:
        """Returns the seconds by span, scaled to all measured steps, all seconds, and the steps."""
        steps = self._steps if self._sampled else 0
        scale = steps / self._sampled if steps else 0.0
        return {name: value * scale for name, value in self._spans.items()}, self._seconds, steps

    def _before_step(self) -> None:
        if self._settings is not None and self._profiler is None:
            ahead = self._settings.start <= self._done + 1 <= self._settings.last
            if ahead:
                self._since, self._profiled_from = None, self._done + 1
                self._profiler = start_profiler(self._device)

    def _discard_empty_window(self) -> None:
        """Stops a profiler that was started where no step followed, as before an evaluation."""
        if self._profiler is not None and self._profiled_from == self._done + 1:
            self._profiler.stop()
            self._profiler = None

    def _is_measured(self) -> bool:
        return self._profiler is None and self._done + 1 >= self._first + _WARM_UP

    def _collected(self) -> AbstractContextManager[Any]:
        """Sums the spans of a step that is measured; of a GPU's, one in some."""
        if not self._is_measured():
            return nullcontext()
        if self._device.type == "cuda" and self._steps % _CUDA_SAMPLE:
            return nullcontext()
        self._sampled += 1
        return collect_spans(self._device, self._spans)

    def _after_step(self, start: float) -> None:
        """Counts a step, and the time since the end of the one before."""
        now = time.perf_counter()
        if self._is_measured():
            self._steps += 1
            self._seconds += now - (start if self._since is None else self._since)
            self._since = now
        self._done += 1

    def _close_window(self, *, at_end: bool = False) -> None:
        """Stops the profiler behind the last profiled step, and writes the table."""
        if self._profiler is None or self._settings is None:
            return
        if self._done < self._settings.last and not at_end:
            return
        profiler, self._profiler = self._profiler, None
        # A thread of Gloo that begins a collective meanwhile adds to the records that torch reads
        # without a lock: spans are lost, or the process is.
        self._settle()
        with span("writing the profile", patient=True):
            own = stop_profiler(profiler, self._device, self._folder)
            ranks = gather_objects(own)
            if rank() == 0:
                self._write_table([times for times in ranks if STEP in times])

    def _write_table(self, ranks: list[Any]) -> None:
        """Writes the table of the ranks whose traces were written."""
        if not ranks:
            return
        arguments = mean_times(ranks), self._profiled_from, self._done, len(ranks)
        text = table_markdown(*arguments)
        try:
            write_file(self._folder / "table.json", table_json(*arguments))
            write_file(self._folder / "table.md", text)
        except OSError as error:
            logger.warning("the table of the profiled steps could not be written: %s", error)
        self._lines.append(f"profile, also in '{self._folder}' with traces:\n{text.rstrip()}")


def num_cores() -> int:
    """Returns the cores that each rank of this machine may use for itself."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    return max(len(os.sched_getaffinity(0)) // max(here, 1), 1)

"""Records of a run while it trains: metrics.jsonl, TensorBoard and a progress bar.

The writer also stops the run on a loss that is not finite. A disk that takes no records does not
stop it.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from mail_torchrec.checkpoint.manifest import CONFIG, LogPosition
from mail_torchrec.config import Config, load_config
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.distributed.collectives import rank, world_size
from mail_torchrec.optim.groups import OptimizerGroups
from mail_torchrec.optim.schedules import log_longer_schedules
from mail_torchrec.reporting.tensorboard_events import (
    event_file_name,
    first_events,
    scalar_events,
)
from mail_torchrec.trackers.run_trackers import RunTrackers, named_metrics
from mail_torchrec.train.resume import ResumePoint, redistribute_progress
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.progress import progress_bar
from mail_torchrec.utils.run_files import AppendedFile
from mail_torchrec.utils.spans import span

logger = get_logger(__name__)


class NonFiniteLossError(ValueError):
    """A loss became infinite or not a number."""


class MetricsWriter:
    """Averages losses over ``every`` steps and all ranks, and writes them on rank 0.

    A context manager: it closes the files that it opened.

    Args:
        run_dir: directory of the files.
        num_steps: steps of the whole run.
        every: steps between two reports.
        num_done: steps of the run that were done before.
        position: position in metrics.jsonl at that step; what was written behind it is deleted.
        loss_sums: name -> this rank's sum of a loss since the last report before that step, a
            scalar.
        optimizer_record: returns learning rates and the like, for each report.
        trackers: are told the same numbers.
    """

    def __init__(
        self,
        run_dir: RunDir,
        num_steps: int,
        every: int,
        *,
        num_done: int = 0,
        position: LogPosition | None = None,
        loss_sums: dict[str, Tensor] | None = None,
        optimizer_record: Callable[[], dict[str, float]] = dict,
        trackers: RunTrackers | None = None,
    ) -> None:
        self._run_dir, self._every = run_dir, every
        self.num_steps = num_steps
        """Steps of the whole run."""
        self._resumed_at, self._optimizer_record = position, optimizer_record
        self._trackers = trackers
        self.num_done = num_done
        """Steps done."""
        self._rows, self._rows_reported, self._waited = 0, 0, 0.0
        self._sums: dict[str, Tensor] = dict(loss_sums or {})
        self._reported_at = time.perf_counter()
        self._steps_since_report = position.steps_since_report if position else 0
        self._log: AppendedFile | None = None
        self._events: AppendedFile | None = None
        self._bar: Any = None

    def __enter__(self) -> Self:
        if rank() == 0:
            kept = self._resumed_at.log_bytes if self._resumed_at else 0
            self._log = AppendedFile(self._run_dir.log, kept)
            self._events = AppendedFile(self._run_dir.tensorboard / event_file_name())
            self._events.append(first_events(purge_step=self.num_done + 1))
            self._bar = progress_bar(
                desc="train",
                unit="step",
                total=self.num_steps,
                initial=self.num_done,
                leave=True,
            )
        self._reported_at = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for opened in (self._log, self._events, self._bar):
            if opened is not None:
                opened.close()

    def record_step(self, losses: dict[str, Tensor], num_rows: int, waited: float = 0.0) -> None:
        """Adds one step's losses; writes a report after every ``every`` steps.

        Args:
            losses: name -> this rank's share, a scalar.
            num_rows: rows of this rank's batch.
            waited: seconds that this rank waited for input.

        Raises:
            NonFiniteLossError: on every rank, when a loss was not finite in the steps since the
                last report.
        """
        self.num_done += 1
        self._steps_since_report += 1
        self._rows += num_rows
        self._waited += waited
        for name, loss in losses.items():
            self._sums[name] = self._sums[name] + loss if name in self._sums else loss.clone()
        if self._bar is not None:
            self._bar.update()
        if self.num_done % self._every == 0 or self.num_done == self.num_steps:
            self._report(next(iter(losses.values())).device)

    def record_validation(self, metrics: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        """Writes the metrics of validation rows.

        Args:
            metrics: by cohort and name.
            seconds: that the evaluation took, which do not count as time of the training.
        """
        self._reported_at += seconds
        self.record_metrics("validation", metrics, seconds)

    def record_metrics(
        self, part: str, metrics: Mapping[str, Mapping[str, Any]], seconds: float
    ) -> None:
        """Writes the metrics of rows under the name of a part, such as ``validation``.

        Args:
            part: name of the rows.
            metrics: by cohort and name.
            seconds: that the evaluation took.
        """
        self.write_event({part: metrics, "seconds": round(seconds, 2)})
        self._record_scalars(named_metrics(part, metrics))

    def _record_scalars(self, scalars: dict[str, float]) -> None:
        """Tells TensorBoard and the trackers of numbers, on rank 0."""
        if self._events is not None:
            self._events.append(scalar_events(scalars, self.num_done))
        if self._trackers is not None:
            self._trackers.log(scalars, self.num_done)

    def finish(self) -> None:
        """Writes a report of the last steps, where a run stops between two reports."""
        if self._steps_since_report:
            self._report(next(iter(self._sums.values())).device)

    def write_event(self, record: dict[str, Any]) -> None:
        """Writes one line to metrics.jsonl on rank 0, with the step in front."""
        if self._log is not None:
            line = json.dumps({"step": self.num_done} | record) + "\n"
            self._log.append(line.encode())

    def position(self) -> LogPosition:
        """Returns the current position in metrics.jsonl."""
        return LogPosition(
            steps_since_report=self._steps_since_report,
            log_bytes=self._log.size if self._log is not None else 0,
        )

    def loss_sums(self) -> dict[str, float]:
        """Returns this rank's loss sums since the last report, by name."""
        return {name: float(value) for name, value in self._sums.items()}

    def _report(self, device: torch.device) -> None:
        """Averages the sums over steps and ranks, checks them, and writes them."""
        means, rows, waited = self._reduced(device)
        _check_finite(means, self.num_done - self._steps_since_report + 1, self.num_done)
        now = time.perf_counter()
        seconds = now - self._reported_at
        record = {
            "rows_per_second": round(rows / seconds, 1),
            "input_wait": round(waited / seconds / world_size(), 4),
        }
        record |= {f"loss/{name}": mean for name, mean in means.items()}
        record |= self._optimizer_record()
        self.write_event(record)
        self._record_scalars(record)
        if self._bar is not None:
            rate = f"{record['rows_per_second']:,.0f} rows/s"
            self._bar.set_postfix_str(f"{rate}  {_format(means.items())}", refresh=False)
        self._reported_at, self._steps_since_report = now, 0
        self._rows_reported, self._waited = self._rows, 0.0
        self._sums.clear()

    def _reduced(self, device: torch.device) -> tuple[dict[str, float], float, float]:
        """Returns mean losses by name, rows and seconds of waiting since the last report.

        Losses are means over steps and ranks; rows and seconds are sums over ranks.
        """
        own = [self._rows - self._rows_reported, self._waited]
        sums = torch.cat(
            [
                torch.stack(list(self._sums.values())).double(),
                torch.tensor(own, dtype=torch.float64, device=device),
            ]
        )
        if world_size() > 1:
            with span("communication"):
                dist.all_reduce(sums)
                sums = sums.cpu()  # a GPU waits for the other ranks here
        *losses, rows, waited = sums.tolist()
        means = {
            name: loss / self._steps_since_report / world_size()
            for name, loss in zip(self._sums, losses, strict=True)
        }
        return means, rows, waited


def writer_of_run(
    config: Config,
    run_dir: RunDir,
    reader: Reader,
    optimizer: OptimizerGroups,
    point: ResumePoint | None,
    trackers: RunTrackers,
    first_step: int = 0,
) -> MetricsWriter:
    """Makes the writer of a run's records, and tells the schedules how many steps there are.

    Args:
        config: of the run.
        run_dir: of the run.
        reader: of the training rows, at the position where the run begins or resumes.
        optimizer: of the run.
        point: where the run resumes; None where it begins.
        trackers: of the run.
        first_step: steps of the runs that a run which begins goes on from.
    """
    every = config.train.steps_between_reports(len(reader))
    told: dict[str, Any] = {"optimizer_record": optimizer.record, "trackers": trackers}
    if point is None:
        num_steps = first_step + config.train.epochs * len(reader)
        optimizer.plan(num_steps)
        return MetricsWriter(run_dir, num_steps, every, **told, num_done=first_step)
    manifest = point.manifest
    left = reader.steps_left + (config.train.epochs - manifest.position.epoch - 1) * len(reader)
    logger.info(
        "going on after step %d, in epoch %d: %d steps are left",
        manifest.step,
        manifest.position.epoch + 1,
        left,
    )
    optimizer.plan(manifest.step + left)
    later_end = config.train.epochs - load_config(point.folder / CONFIG, []).train.epochs
    log_longer_schedules(config.train, manifest.step, manifest.step + left, later_end * len(reader))
    losses = redistribute_progress(manifest.ranks).losses
    return MetricsWriter(
        run_dir,
        manifest.step + left,
        every,
        **told,
        num_done=manifest.step,
        position=manifest.progress,
        loss_sums={name: torch.tensor(value) for name, value in losses.items()},
    )


def _format(losses: Iterable[tuple[str, float]]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in losses)


def _check_finite(means: dict[str, float], first: int, last: int) -> None:
    """Raises :class:`NonFiniteLossError` where a mean of steps ``first`` to ``last`` is bad."""
    bad = {name: value for name, value in means.items() if not math.isfinite(value)}
    if bad:
        faults = ", ".join(f"{name} is {value}" for name, value in bad.items())
        others = _format((name, value) for name, value in means.items() if name not in bad)
        raise NonFiniteLossError(
            f"loss {faults} between steps {first} and {last} (the others: {others or 'none'}); "
            "the run stops and saves no weights. Lower train.learning_rate or "
            "train.tables.learning_rate, and look for outliers in numeric columns (transform: log)"
        )

"""Records of a run while it trains: metrics.jsonl, TensorBoard and a progress bar.

The writer also stops the run on a loss that is not finite. A disk that takes no records does not
stop it.
"""

import json
import math
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from mail_torchrec.checkpoint.manifest import LogPosition
from mail_torchrec.distributed.collectives import rank, world_size
from mail_torchrec.reporting.tensorboard_events import (
    event_file_name,
    first_events,
    scalar_events,
)
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.progress import progress_bar
from mail_torchrec.utils.run_files import AppendedFile
from mail_torchrec.utils.spans import span


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
    ) -> None:
        self._run_dir, self._num_steps, self._every = run_dir, num_steps, every
        self._resumed_at = position
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
                total=self._num_steps,
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
        if self.num_done % self._every == 0 or self.num_done == self._num_steps:
            self._report(next(iter(losses.values())).device)

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
        self.write_event(record)
        if self._events is not None:
            self._events.append(scalar_events(record, self.num_done))
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
        *losses, rows, waited = sums.tolist()
        means = {
            name: loss / self._steps_since_report / world_size()
            for name, loss in zip(self._sums, losses, strict=True)
        }
        return means, rows, waited


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

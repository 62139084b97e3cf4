"""What a run tells while it trains: a progress bar, TensorBoard, metrics.jsonl, and a stop on a loss that is not finite."""

import json
import os
import time
from collections.abc import Iterable
from types import TracebackType
from typing import IO, Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mail_torchrec.checkpoint.manifest import Progressed
from mail_torchrec.distributed.collectives import rank, world_size
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.logging import bar_interval


class NonFiniteLossError(ValueError):
    """A loss became infinite or not a number."""


class Progress:
    """Averages the losses over ``every`` steps and all ranks, checks them, and writes them down on rank 0.

    A context manager: it closes what it opened.

    Args:
        run_dir: where the files go.
        num_steps: of the whole run.
        every: steps between two reports.
        num_done: of the run's steps, those done before.
        before: where the records stood then; what was written behind that is deleted.
        sums: this rank's losses since the report before that.
    """

    def __init__(
        self,
        run_dir: RunDir,
        num_steps: int,
        every: int,
        *,
        num_done: int = 0,
        before: Progressed | None = None,
        sums: dict[str, Tensor] | None = None,
    ) -> None:
        self._run_dir, self._num_steps, self._every, self._before = (
            run_dir,
            num_steps,
            every,
            before,
        )
        self.num_done = num_done
        """Steps done."""
        self._rows, self._rows_reported, self._waited = 0, 0, 0.0
        self._sums: dict[str, Tensor] = dict(sums or {})
        self._since, self._steps_since = (
            time.perf_counter(),
            before.steps_since_report if before else 0,
        )
        self._file: IO[str] | None = None
        self._writer: Any = None
        self._bar: Any = None

    def __enter__(self) -> Self:
        if rank() == 0:
            self._file = self._run_dir.log.open("a")
            os.truncate(
                self._run_dir.log,
                min(self._file.tell(), self._before.log_bytes if self._before else 0),
            )
            self._writer = SummaryWriter(
                str(self._run_dir.tensorboard), purge_step=self.num_done + 1
            )
            self._bar = tqdm(
                total=self._num_steps,
                initial=self.num_done,
                unit="step",
                desc="train",
                dynamic_ncols=True,
                mininterval=bar_interval(),
            )
        self._since = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for opened in (self._file, self._writer, self._bar):
            if opened is not None:
                opened.close()

    def step(self, losses: dict[str, Tensor], num_rows: int, waited: float = 0.0) -> None:
        """Takes one step's shares of the losses.

        Args:
            losses: name -> this rank's share.
            num_rows: of this rank.
            waited: seconds that this rank waited for input.

        Raises:
            NonFiniteLossError: on every rank, when a loss was not finite in the steps since the
                last report.
        """
        self.num_done += 1
        self._steps_since += 1
        self._rows += num_rows
        self._waited += waited
        for name, loss in losses.items():
            self._sums[name] = self._sums[name] + loss if name in self._sums else loss.clone()
        if self._bar is not None:
            self._bar.update()
        if self.num_done % self._every == 0 or self.num_done == self._num_steps:
            self._report(next(iter(losses.values())).device)

    def event(self, record: dict[str, Any]) -> None:
        """Writes a line to metrics.jsonl (rank 0), the step before it."""
        if self._file is not None:
            self._file.write(json.dumps({"step": self.num_done} | record) + "\n")
            self._file.flush()

    def progressed(self) -> Progressed:
        """Where the records stand."""
        return Progressed(
            steps_since_report=self._steps_since,
            log_bytes=self._file.tell() if self._file is not None else 0,
        )

    def sums(self) -> dict[str, float]:
        """This rank's losses since the last report."""
        return {name: float(value) for name, value in self._sums.items()}

    def _report(self, device: torch.device) -> None:
        names = list(self._sums)
        own = torch.tensor(
            [self._rows - self._rows_reported, self._waited], dtype=torch.float64, device=device
        )
        sums = torch.cat([torch.stack(list(self._sums.values())).double(), own])
        if world_size() > 1:
            dist.all_reduce(sums)
        means = {
            name: value / self._steps_since / world_size()
            for name, value in zip(names, sums.tolist(), strict=False)
        }
        _check_finite(means, self.num_done - self._steps_since + 1, self.num_done)
        now = time.perf_counter()
        rows, waited = (sums[-2:] / (now - self._since)).tolist()
        record = {"rows_per_second": round(rows, 1), "input_wait": round(waited / world_size(), 4)}
        record |= {f"loss/{name}": mean for name, mean in means.items()}
        self.event(record)
        if self._writer is not None:
            for name, value in record.items():
                self._writer.add_scalar(name, value, self.num_done)
            self._bar.set_postfix_str(
                f"{record['rows_per_second']:,.0f} rows/s  " + _short(means.items()), refresh=False
            )
        self._since, self._steps_since, self._rows_reported, self._waited = now, 0, self._rows, 0.0
        self._sums.clear()


def _short(losses: Iterable[tuple[str, float]]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in losses)


def _check_finite(means: dict[str, float], first: int, last: int) -> None:
    bad = {name: value for name, value in means.items() if not -float("inf") < value < float("inf")}
    if bad:
        raise NonFiniteLossError(
            f"loss {', '.join(f'{name} is {value}' for name, value in bad.items())} between steps "
            f"{first} and {last} (the others: "
            f"{_short((name, value) for name, value in means.items() if name not in bad) or 'none'}); the run stops and saves no weights. "
            "Lower train.learning_rate or train.tables.learning_rate, and look for outliers in "
            "numeric columns (transform: log)"
        )

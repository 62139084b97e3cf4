"""Trainings and evaluations of many methods and seeds, side by side, each in a process of its own; what is finished is kept."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from mail_torchrec.config import Config, differences, dump_config, load_config
from mail_torchrec.data.parquet.source import Source
from mail_torchrec.model.mail import Towers
from mail_torchrec.reproduce.methods import METHODS, resolve
from mail_torchrec.train.assembly import feature_tables_of
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.logging import bar_interval

_POLL_SECONDS = 0.1


class Job(Protocol):
    """A call of the command line, to be done once."""

    @property
    def title(self) -> str:
        """How messages call it."""

    @property
    def log(self) -> Path:
        """What its process prints."""

    def is_finished(self) -> bool:
        """Whether its results are there."""

    def arguments(self) -> list[str]:
        """Makes room for its results; the arguments of ``mail-torchrec``."""


@dataclass(frozen=True)
class Run:
    """One training: a method, a seed, and where it goes."""

    method: str
    seed: int
    path: Path
    config: Config

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.method}, seed {self.seed}"

    @property
    def run_dir(self) -> RunDir:
        """Its run directory."""
        return RunDir(self.path)

    @property
    def log(self) -> Path:
        """What its process prints."""
        return self.path.with_suffix(".log")

    def is_finished(self) -> bool:
        """Whether its results are there.

        Raises:
            ValueError: they are, but of another configuration. Settings that the run did not have
                yet count as their defaults.
        """
        if not self.run_dir.metrics.exists():
            return False
        try:
            other = differences(load_config(self.run_dir.config, []), self.config)
        except ValueError as error:
            other = [str(error)]
        if other:
            raise ValueError(
                f"'{self.path}' was trained with another configuration; choose another --out, or "
                "delete it:\n  " + "\n  ".join(other[:10])
            )
        return True

    def arguments(self) -> list[str]:
        """Deletes what an unfinished training left, writes the configuration; the arguments of ``mail-torchrec``."""
        if self.path.exists():
            tqdm.write(f"{self.title} was not finished; it starts again", file=sys.stderr)
            shutil.rmtree(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        config = self.path.with_suffix(".yaml")
        config.write_text(dump_config(self.config))
        return ["train", "--config", str(config), "--run-dir", str(self.path)]


@dataclass(frozen=True)
class Evaluation:
    """A finished run on its test data once more, under overrides; its scores lie in the run directory."""

    run: Run
    name: str
    overrides: tuple[str, ...]

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.run.title}, {self.name}"

    @property
    def predictions(self) -> Path:
        """The scores."""
        return self.run.path / f"{self.name}.npz"

    @property
    def log(self) -> Path:
        """What its process prints."""
        return self.predictions.with_suffix(".log")

    def is_finished(self) -> bool:
        """Whether its scores are there."""
        return self.predictions.exists()

    def arguments(self) -> list[str]:
        """The arguments of ``mail-torchrec``."""
        return [
            "evaluate",
            "--run-dir",
            str(self.run.path),
            "--predictions",
            str(self.predictions),
            *self.overrides,
        ]


def plan(
    config_path: Path, out: Path, methods: Sequence[str], num_seeds: int, overrides: tuple[str, ...]
) -> list[Run]:
    """Every run, seed by seed, with its configuration validated and its towers built once without memory.

    Raises:
        ValueError: the configuration, the data or some methods cannot be used; all such methods are
            named.
    """
    config = load_config(config_path, list(overrides))
    for part in (config.data.train, config.data.test):
        Source(config.data.path(part), config.schema_)
    runs, faults = [], []
    for name in methods:
        try:
            _check_buildable(resolve(METHODS[name], config_path, overrides, seed=1))
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ValueError(
            "these methods cannot be trained here; correct this, or name the others with "
            "--method:\n" + "\n".join(faults)
        )
    for seed in range(1, num_seeds + 1):
        for name in methods:
            runs.append(
                Run(
                    name,
                    seed,
                    out / "runs" / METHODS[name].file_name / f"seed-{seed}",
                    resolve(METHODS[name], config_path, overrides, seed),
                )
            )
    return runs


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Method -> its runs, both in the order of the runs."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.method, []).append(run)
    return found


def run_all(jobs: Sequence[Job], out: Path, at_once: int, threads: int) -> None:
    """Does what is not finished, ``at_once`` processes side by side.

    A failed job does not stop the others; an interruption stops them all and leaves the finished
    ones usable.

    Raises:
        ValueError: finished runs of another configuration, another process at work in ``out``, or
            failed jobs, their logs named.
    """
    with _only_process(out):
        waiting = [job for job in jobs if not job.is_finished()]
        failed: list[Job] = []
        bar: tqdm[Any] = tqdm(
            total=len(jobs),
            initial=len(jobs) - len(waiting),
            desc="runs",
            unit="run",
            mininterval=bar_interval(),
        )
        with bar:
            for job, code in _finished(waiting, at_once, threads, bar):
                bar.update()
                if code:
                    failed.append(job)
                    bar.write(f"{job.title} failed; the others go on", file=sys.stderr)
    if failed:
        lines = [f"  {job.title}: {job.log}: {_last_line(job.log)}" for job in failed]
        raise ValueError(
            f"{len(failed)} of {len(jobs)} runs failed; the others are finished and kept:\n"
            + "\n".join(lines)
        )


def _finished(
    waiting: list[Job], at_once: int, threads: int, bar: "tqdm[Any]"
) -> Iterator[tuple[Job, int]]:
    """Starts the jobs in order and yields each with its exit code when it ends."""
    queue = deque(waiting)
    running: list[tuple[Job, subprocess.Popen[bytes]]] = []
    try:
        while queue or running:
            while queue and len(running) < at_once:
                job = queue.popleft()
                running.append((job, _start(job, threads)))
                bar.set_postfix_str(
                    "; ".join(job.title for job, _ in running), refresh=sys.stderr.isatty()
                )
            time.sleep(_POLL_SECONDS)
            ended = [(job, process) for job, process in running if process.poll() is not None]
            running = [pair for pair in running if pair not in ended]
            for job, process in ended:
                yield job, process.returncode
    finally:
        for _, process in running:
            process.terminate()
        for _, process in running:
            process.wait()


def _start(job: Job, threads: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "mail_torchrec", *job.arguments()]
    with job.log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )


def _check_buildable(config: Config) -> None:
    with torch.device("meta"):
        Towers(
            config.model,
            config.schema_,
            feature_tables_of(config),
            dict.fromkeys(config.schema_.table_names, 3),
        )


@contextmanager
def _only_process(out: Path) -> Iterator[None]:
    """Two processes in one folder would delete each other's unfinished runs. A polite kill ends the runs too, as Ctrl-C does."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process reproduces into '{out}'; wait for it, or choose another --out"
            ) from error
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "(empty)")

"""Runs jobs side by side, each in a process of its own; finished jobs are kept."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mail_torchrec.distributed.parent import PARENT_VARIABLE
from mail_torchrec.reproduce.jobs import Job
from mail_torchrec.utils.local_path import make_output_dir
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.progress import is_terminal, progress_bar

logger = get_logger(__name__)

_POLL_SECONDS = 0.1


def run_jobs(jobs: Sequence[Job], out: Path, num_processes: int, threads: int) -> None:
    """Runs the jobs that are not finished, ``num_processes`` side by side.

    A failed job does not stop the others; an interruption stops them all and leaves the finished
    ones usable.

    Args:
        jobs: in the order in which they start.
        out: folder of the reproduction, locked meanwhile.
        num_processes: jobs that run at a time.
        threads: threads of each process.

    Raises:
        ValueError: finished runs of another configuration, another process at work in ``out``, or
            failed jobs, their logs named.
    """
    failed: list[Job] = []
    with _lock_reproduction(out):
        waiting = [job for job in jobs if not job.is_finished()]
        num_finished = len(jobs) - len(waiting)
        bar: tqdm[Any] = progress_bar(
            total=len(jobs), initial=num_finished, desc="runs", unit="run", leave=True
        )
        with bar:
            for job, exit_code in _run_in_processes(waiting, num_processes, threads, bar):
                bar.update()
                if exit_code:
                    failed.append(job)
                    logger.info("%s failed; the others go on", job.title)
    if failed:
        lines = [f"  {job.title}: {job.log}: {_last_line(job.log)}" for job in failed]
        raise ValueError(
            f"{len(failed)} of {len(jobs)} runs failed; the others are finished and kept:\n"
            + "\n".join(lines)
        )


def _run_in_processes(
    waiting: Sequence[Job], num_processes: int, threads: int, bar: "tqdm[Any]"
) -> Iterator[tuple[Job, int]]:
    """Starts the jobs in order and yields each with its exit code when it ends."""
    queue = deque(waiting)
    running: list[tuple[Job, subprocess.Popen[bytes]]] = []
    try:
        while queue or running:
            while queue and len(running) < num_processes:
                job = queue.popleft()
                running.append((job, _start(job, threads)))
                titles = "; ".join(job.title for job, _ in running)
                bar.set_postfix_str(titles, refresh=is_terminal())
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
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), PARENT_VARIABLE: str(os.getpid())}
    with job.log.open("wb") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )


@contextmanager
def _lock_reproduction(out: Path) -> Iterator[None]:
    """Locks the folder: two processes in it would delete each other's unfinished runs.

    SIGTERM ends the running jobs too, as Ctrl-C does.
    """
    make_output_dir(out)
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

"""Runs a function on gloo ranks, each a process of its own."""

import os
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mail_torchrec.utils.logging import silence_third_parties
from tests.support.preloaded import PreloadedProcess

_GRACE_SECONDS = 5
"""How long the others may take to tell their own errors once a process has failed."""


class ProcessesFailedError(Exception):
    """A process raised an error or died; the message has the traceback of each that did."""


def run_ranks(world_size: int, function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """``function(*args)`` on every rank of a process group.

    Args:
        world_size: ranks.
        function: importable by name; its result must be picklable by ``torch.save``.
        folder: empty, for the rendezvous and the results.
        args: handed over.

    Returns:
        The results in the order of the ranks.

    Raises:
        ProcessesFailedError: a rank failed; the others are ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run_processes(world_size, folder, _rank, world_size, function, str(folder), args)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def run_processes(count: int, folder: Path, function: Callable[..., Any], *args: Any) -> None:
    """``function(number, *args)`` in so many processes; raises as ``run_ranks`` does."""
    told = [folder / f"{number}.error" for number in range(count)]
    processes = [
        PreloadedProcess(_telling, (str(path), function, number, args))
        for number, path in enumerate(told)
    ]
    try:
        for process in processes:
            process.start()
        running = {process.sentinel: process for process in processes}
        end = float("inf")
        while running and time.monotonic() < end:
            for sentinel in connection.wait(running, None if end == float("inf") else 0.1):
                process = running.pop(sentinel)  # type: ignore[call-overload]
                process.join()
                if process.exitcode:
                    end = min(end, time.monotonic() + _GRACE_SECONDS)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    _check(processes, told)


def _check(processes: Sequence[PreloadedProcess], told: Sequence[Path]) -> None:
    """Raises where a process failed; whoever told an error first comes first."""
    failed = []
    for number, (process, path) in enumerate(zip(processes, told, strict=True)):
        if process.exitcode:
            text = path.read_text() if path.exists() else f"exit status {process.exitcode}\n"
            when = path.stat().st_mtime_ns if path.exists() else float("inf")
            failed.append((when, f"-- process {number}: {text}"))
    if failed:
        raise ProcessesFailedError("\n".join(["", *(text for _, text in sorted(failed))]))


def _telling(path: str, function: Callable[..., Any], number: int, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        function(number, *args)
    except BaseException:
        Path(path).write_text(traceback.format_exc())
        raise


def _rank(
    rank: int, world_size: int, function: Callable[..., Any], folder: str, args: tuple[Any, ...]
) -> None:
    silence_third_parties()
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(world_size)}
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(minutes=5),
    )
    dist.barrier()  # else one that leaves at once hangs up on another that still connects
    torch.save(function(*args), f"{folder}/{rank}.pt")
    dist.destroy_process_group()  # after an error only once it is told, for others fail by this

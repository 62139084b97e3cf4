"""A side in a process of its own, with memory and caches of its own, as it would train alone; it sleeps while others have their turn."""

import os
import re
import socket
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import torch.multiprocessing as mp

from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.utils.logging import quiet_third_parties
from tools.benchmark.interleaved import Turn, timed
from tools.benchmark.setting import Setting, Variant
from tools.benchmark.sides import REFERENCE, encoders_of, side_of


class Apart:
    """Starts the process, or one for each rank, and takes turns in it.

    Args:
        setting: data, columns, towers.
        variant: of the trainer; None is the reference.
        device: cpu or cuda.
        threads: of a process.
        ranks: processes that train together.
        name: of the side; by default the variant's.
    """

    def __init__(
        self,
        setting: Setting,
        variant: Variant | None,
        device: str,
        threads: int,
        *,
        ranks: int = 1,
        name: str | None = None,
    ) -> None:
        self.name = name or (REFERENCE if variant is None else variant.name)
        context = mp.get_context("spawn")
        environments = _environments(ranks)
        pipes = [context.Pipe() for _ in environments]
        self._pipes = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(
                target=_take_turns, args=(theirs, environment, setting, variant, device, threads)
            )
            for (_, theirs), environment in zip(pipes, environments, strict=True)
        ]
        for process, (_, theirs) in zip(self._processes, pipes, strict=True):
            process.start()
            theirs.close()

    def turn(self, steps: int) -> Turn:
        """Trains some steps, on all ranks.

        Raises:
            RuntimeError: a process failed; the message holds its traceback.
        """
        for rank in range(len(self._pipes)):
            self._send(rank, steps)
        turns = [self._received(rank) for rank in range(len(self._pipes))]
        slowest = max(turns, key=lambda turn: turn.seconds)
        return Turn(
            sum(turn.rows for turn in turns),
            slowest.seconds,
            slowest.waited,
            max(turn.peak_bytes for turn in turns),
        )

    def _send(self, rank: int, steps: int) -> None:
        try:
            self._pipes[rank].send(steps)
        except BrokenPipeError as error:
            raise self._ended(rank) from error

    def _received(self, rank: int) -> Turn:
        try:
            answer = self._pipes[rank].recv()
        except EOFError as error:
            raise self._ended(rank) from error
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name}: {answer}")
        assert isinstance(answer, Turn)
        return answer

    def _ended(self, rank: int) -> RuntimeError:
        self._processes[rank].join()
        return RuntimeError(
            f"{self.name}: its process of rank {rank} ended with exit status "
            f"{self._processes[rank].exitcode}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()


def _environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun would tell each rank; nothing to one alone."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    job |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _take_turns(
    pipe: Connection,
    environment: dict[str, str],
    setting: Setting,
    variant: Variant | None,
    device: str,
    threads: int,
) -> None:
    """Answers each number of steps with their turn, or with the traceback of what failed."""
    quiet_third_parties()
    os.environ |= environment
    torch.set_num_threads(threads)
    try:
        with process_group(device) as of:
            side = side_of(setting, variant, of, encoders_of(setting.config()))
            while (steps := _asked(pipe)) is not None:
                pipe.send(replace(timed(side, steps), peak_bytes=_peak_bytes(of)))
    except Exception:
        pipe.send(traceback.format_exc())
        _asked(pipe)  # until somebody has read it


def _peak_bytes(device: torch.device) -> int:
    """What was allocated on the GPU at most, or resident memory at its highest.

    Of the latter ``getrusage`` would hold the parent's peak as well, from before this process
    became a program of its own.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _asked(pipe: Connection) -> int | None:
    """The next number of steps; None where the pipe was closed."""
    try:
        return int(pipe.recv())
    except EOFError:
        return None

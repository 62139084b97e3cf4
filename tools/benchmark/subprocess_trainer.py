"""Runs a trainer in a process of its own, which sleeps while others have their turn.

So it has memory and caches of its own, as when it trains alone.
"""

import os
import re
import socket
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import torch
import torch.multiprocessing as mp

from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.utils.logging import silence_third_parties
from tools.benchmark.profile.recording import ProfiledSteps, ProfileRequest, record_profile
from tools.benchmark.throughput import Turn, timed_turn
from tools.benchmark.trainers import REFERENCE, make_trainer, workload_encoders
from tools.benchmark.workload import Variant, Workload

Reply = TypeVar("Reply", Turn, ProfiledSteps)


class SubprocessTrainer:
    """Starts the process, or one for each rank, and takes turns in it.

    Args:
        workload: data, columns, towers.
        variant: of this project; None is the direct reference.
        device: cpu or cuda.
        threads: threads of each process.
        ranks: processes that train together.
        name: in results; by default the variant's.
    """

    def __init__(
        self,
        workload: Workload,
        variant: Variant | None,
        device: str,
        threads: int,
        *,
        ranks: int = 1,
        name: str | None = None,
    ) -> None:
        self.name = name or (REFERENCE if variant is None else variant.name)
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for environment in _rank_environments(ranks):
            pipe, child_pipe = context.Pipe()
            arguments = (child_pipe, environment, workload, variant, device, threads)
            process = context.Process(target=_serve_turns, args=arguments)
            process.start()
            child_pipe.close()
            self._pipes.append(pipe)
            self._processes.append(process)

    def turn(self, steps: int) -> Turn:
        """Trains some steps on all ranks; the slowest rank's time counts.

        Raises:
            RuntimeError: a process failed; the message holds its traceback.
        """
        for rank in range(len(self._pipes)):
            self._send(rank, steps)
        turns = [self._receive(rank, Turn) for rank in range(len(self._pipes))]
        slowest = max(turns, key=lambda turn: turn.seconds)
        rows = sum(turn.rows for turn in turns)
        peak_bytes = max(turn.peak_bytes for turn in turns)
        return replace(slowest, rows=rows, peak_bytes=peak_bytes)

    def profile(self, steps: int, folder: Path) -> list[ProfiledSteps]:
        """Profiles some steps of all ranks; traces are written to ``rank-N.json``.

        Args:
            steps: number of them.
            folder: an existing folder.

        Raises:
            RuntimeError: see :meth:`turn`.
        """
        for rank in range(len(self._pipes)):
            self._send(rank, ProfileRequest(steps, folder / f"rank-{rank}.json"))
        return [self._receive(rank, ProfiledSteps) for rank in range(len(self._pipes))]

    def _send(self, rank: int, request: int | ProfileRequest) -> None:
        try:
            self._pipes[rank].send(request)
        except BrokenPipeError as error:
            raise self._ended(rank) from error

    def _receive(self, rank: int, kind: type[Reply]) -> Reply:
        try:
            reply = self._pipes[rank].recv()
        except EOFError as error:
            raise self._ended(rank) from error
        if isinstance(reply, str):
            raise RuntimeError(f"{self.name}: {reply}")
        assert isinstance(reply, kind)
        return reply

    def _ended(self, rank: int) -> RuntimeError:
        process = self._processes[rank]
        process.join()
        return RuntimeError(
            f"{self.name}: its process of rank {rank} ended with exit status {process.exitcode}"
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


def _rank_environments(ranks: int) -> list[dict[str, str]]:
    """Makes the environment variables that torchrun would set for each rank; none for one alone."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    job |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _serve_turns(
    pipe: Connection,
    environment: dict[str, str],
    workload: Workload,
    variant: Variant | None,
    device: str,
    threads: int,
) -> None:
    """Replies to each number of steps with their turn, to a request of a profile with its times.

    An error is answered by its traceback.
    """
    silence_third_parties()
    os.environ |= environment
    torch.set_num_threads(threads)
    try:
        with process_group(device) as own_device:
            encoders = workload_encoders(workload)
            trainer = make_trainer(workload, variant, own_device, encoders)
            while (request := _receive_request(pipe)) is not None:
                if isinstance(request, ProfileRequest):
                    pipe.send(record_profile(trainer, request))
                    continue
                turn = timed_turn(trainer, request)
                pipe.send(replace(turn, peak_bytes=_peak_bytes(own_device)))
    except Exception:
        pipe.send(traceback.format_exc())
        # The process stays until the traceback was read.
        _receive_request(pipe)


def _peak_bytes(device: torch.device) -> int:
    """Returns the peak of memory allocated on the GPU, or of resident memory.

    For the latter ``getrusage`` would hold the parent's peak as well, from before this process
    became a program of its own.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _receive_request(pipe: Connection) -> int | ProfileRequest | None:
    """Receives the next number of steps, or request of a profile; None at the pipe's end."""
    try:
        request = pipe.recv()
    except EOFError:
        return None
    assert isinstance(request, int | ProfileRequest)
    return request

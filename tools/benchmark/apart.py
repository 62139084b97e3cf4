"""A side in a process of its own, with memory and caches of its own, as it would train alone; it sleeps while others have their turn."""

import traceback
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import torch
import torch.multiprocessing as mp

from mail_torchrec.quiet import quiet_third_parties
from mail_torchrec.train.runtime import process_group
from tools.benchmark.interleaved import Turn, timed
from tools.benchmark.setting import Setting, Variant
from tools.benchmark.sides import REFERENCE, encoders_of, side_of


class Apart:
    """Starts the process and takes turns in it.

    Args:
        setting: data, columns, towers.
        variant: of the trainer; None is the reference.
        device: cpu or cuda.
        threads: of the process.
    """

    def __init__(self, setting: Setting, variant: Variant | None, device: str, threads: int) -> None:
        self.name = REFERENCE if variant is None else variant.name
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_take_turns, args=(theirs, setting, variant, device, threads))
        self._process.start()
        theirs.close()

    def turn(self, steps: int) -> Turn:
        """Trains some steps.

        Raises:
            RuntimeError: the process failed; the message holds its traceback.
        """
        try:
            self._pipe.send(steps)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            self._process.join()
            raise RuntimeError(f"{self.name}: its process ended with exit status {self._process.exitcode}") from error
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name}: {answer}")
        assert isinstance(answer, Turn)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pipe.close()
        self._process.join()


def _take_turns(pipe: Connection, setting: Setting, variant: Variant | None, device: str, threads: int) -> None:
    """Answers each number of steps with their turn, or with the traceback of what failed."""
    quiet_third_parties()
    torch.set_num_threads(threads)
    try:
        with process_group(device) as of:
            side = side_of(setting, variant, of, encoders_of(setting.config()))
            while (steps := _asked(pipe)) is not None:
                pipe.send(timed(side, steps))
    except Exception:
        pipe.send(traceback.format_exc())
        _asked(pipe)  # until somebody has read it


def _asked(pipe: Connection) -> int | None:
    """The next number of steps; None where the pipe was closed."""
    try:
        return int(pipe.recv())
    except EOFError:
        return None

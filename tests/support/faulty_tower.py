"""Ranking tower that fails on one rank at one step, but not after a restart."""

import os
import signal
import time
from typing import Any

import torch

from mail_torchrec.distributed.collectives import rank
from mail_torchrec.distributed.launcher import num_restarts
from mail_torchrec.towers.inputs import InputShapes, RankingInputs
from tests.support.towers_of_users import MeanTower


class FaultyTower(MeanTower):
    """``{fault: raise | kill | sleep | orphan, rank: 1, step: 3}``; steps count from 1."""

    def __init__(self, options: dict[str, Any], shapes: InputShapes) -> None:
        super().__init__({}, shapes)
        self.options, self.steps = options, 0

    def forward(self, inputs: RankingInputs) -> torch.Tensor:
        self.steps += self.training
        if (
            rank() == self.options["rank"]
            and self.steps == self.options["step"]
            and not num_restarts()
        ):
            {
                "raise": self._raise,
                "kill": self._kill,
                "sleep": self._sleep,
                "orphan": self._orphan,
            }[self.options["fault"]]()
        return super().forward(inputs)

    def _raise(self) -> None:
        raise KeyError("a fault of our own")

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _sleep(self) -> None:
        time.sleep(1000)

    def _orphan(self) -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)

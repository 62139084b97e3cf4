"""Measures trainers in turns: a few steps of each, again and again.

A machine that slows down then slows all of them alike.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from tools.benchmark.trainers import BenchmarkTrainer


@dataclass(frozen=True)
class Turn:
    """The measurement of some steps of a trainer."""

    rows: int
    seconds: float
    input_seconds: float
    """Seconds of them that were waited for input."""
    peak_bytes: int = 0
    """Peak memory of the process until then, 0 where it was not measured."""


class TurnTaker(Protocol):
    """Trains some steps when asked to."""

    name: str

    def turn(self, steps: int) -> Turn:
        """Trains some steps, and measures them."""


def timed_turn(trainer: BenchmarkTrainer, steps: int) -> Turn:
    """Trains some steps in this process, and measures them."""
    synchronise()
    input_before, start = trainer.input.seconds, time.perf_counter()
    rows = sum(trainer.step() for _ in range(steps))
    synchronise()
    seconds = time.perf_counter() - start
    return Turn(rows, seconds, trainer.input.seconds - input_before)


@dataclass(frozen=True)
class Throughput:
    """The speed of a trainer over the repeats."""

    rows_per_second: list[float]
    """One value a repeat."""
    seconds_per_step: float
    """Median of the repeats."""
    input_share: float
    """Share of the time of all repeats that was waited for input."""
    peak_bytes: int = 0
    """Peak memory of a process."""

    @property
    def median(self) -> float:
        """Median rows a second."""
        return statistics.median(self.rows_per_second)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON, the median included."""
        return asdict(self) | {"median": self.median}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> "Throughput":
        """Reads the dictionary of :meth:`as_dict`; other keys are ignored."""
        names = Throughput.__dataclass_fields__
        return Throughput(**{key: value for key, value in record.items() if key in names})


@dataclass(frozen=True)
class SpeedRatio:
    """The ratio of two speeds, repeat by repeat: median and range."""

    median: float
    low: float
    high: float

    @staticmethod
    def between(fast: Throughput, slow: Throughput) -> "SpeedRatio":
        """Divides the speeds of two trainers that were measured in the same turns."""
        pairs = zip(fast.rows_per_second, slow.rows_per_second, strict=True)
        return SpeedRatio.summarise([one / other for one, other in pairs])

    @staticmethod
    def summarise(ratios: Sequence[float]) -> "SpeedRatio":
        """Computes median and range of one ratio a repeat."""
        return SpeedRatio(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def measure_in_turns(
    trainers: Sequence[TurnTaker], *, repeats: int, steps: int, warm_up: int = 3
) -> dict[str, Throughput]:
    """Measures trainers in turns.

    Args:
        trainers: of different names.
        repeats: turns of each trainer that count.
        steps: steps of a turn that count; one more before them does not, for the others have
            emptied the caches.
        warm_up: steps of each trainer before all turns.

    Returns:
        The speed of each trainer, by its name.
    """
    for trainer in trainers:
        trainer.turn(warm_up)
    turns: dict[str, list[Turn]] = {trainer.name: [] for trainer in trainers}
    assert len(turns) == len(trainers)
    for _ in range(repeats):
        for trainer in trainers:
            trainer.turn(1)
            turns[trainer.name].append(trainer.turn(steps))
    return {name: _throughput(of_trainer, steps) for name, of_trainer in turns.items()}


def _throughput(turns: list[Turn], steps: int) -> Throughput:
    seconds = [turn.seconds for turn in turns]
    return Throughput(
        [turn.rows / turn.seconds for turn in turns],
        statistics.median(seconds) / steps,
        sum(turn.input_seconds for turn in turns) / sum(seconds),
        max(turn.peak_bytes for turn in turns),
    )


def synchronise() -> None:
    """Waits for the GPU, where one is used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()

"""Sides in turn: a few steps of each, again and again, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from tools.benchmark.sides import Side


@dataclass(frozen=True)
class Turn:
    """Some steps of a side."""

    rows: int
    seconds: float
    waited: float
    """Seconds of them for input."""
    peak_bytes: int = 0
    """Memory of a process at its highest until then, where that was looked at."""


class Taker(Protocol):
    """Something that takes turns."""

    name: str

    def turn(self, steps: int) -> Turn:
        """Trains some steps."""


def timed(side: Side, steps: int) -> Turn:
    """Trains a side some steps in this process."""
    synchronise()
    waited, start = side.input.seconds, time.perf_counter()
    rows = sum(side.step() for _ in range(steps))
    synchronise()
    return Turn(rows, time.perf_counter() - start, side.input.seconds - waited)


@dataclass(frozen=True)
class Rate:
    """A side's speed over the repeats."""

    rows_per_second: list[float]
    """Of each repeat."""
    seconds_per_step: float
    """The median of the repeats."""
    input_share: float
    """Of the time of all repeats, waited for input."""
    peak_bytes: int = 0
    """Memory of a process at its highest."""

    @property
    def median(self) -> float:
        """Rows a second."""
        return statistics.median(self.rows_per_second)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"median": self.median}

    @staticmethod
    def from_dict(found: dict[str, Any]) -> "Rate":
        """What :meth:`as_dict` gave."""
        return Rate(
            **{key: value for key, value in found.items() if key in Rate.__dataclass_fields__}
        )


@dataclass(frozen=True)
class Ratio:
    """How much faster one side is than another, repeat by repeat."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(fast: Rate, slow: Rate) -> "Ratio":
        """Of two sides measured in the same turns."""
        return Ratio.over(
            [
                one / other
                for one, other in zip(fast.rows_per_second, slow.rows_per_second, strict=True)
            ]
        )

    @staticmethod
    def over(ratios: Sequence[float]) -> "Ratio":
        """Median and range of what each repeat found."""
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interleaved(
    sides: Sequence[Taker], *, repeats: int, steps: int, warm_up: int = 3
) -> dict[str, Rate]:
    """Trains each side a few steps in turn and takes the time.

    Args:
        sides: with different names.
        repeats: turns of each side that count.
        steps: of a turn that count; one before them is not counted, for the others have emptied the
            caches.
        warm_up: steps of each side before all.
    """
    for side in sides:
        side.turn(warm_up)
    found: dict[str, list[Turn]] = {side.name: [] for side in sides}
    assert len(found) == len(sides)
    for _ in range(repeats):
        for side in sides:
            side.turn(1)
            found[side.name].append(side.turn(steps))
    return {name: _rate(turns, steps) for name, turns in found.items()}


def _rate(turns: list[Turn], steps: int) -> Rate:
    seconds = [turn.seconds for turn in turns]
    return Rate(
        [turn.rows / turn.seconds for turn in turns],
        statistics.median(seconds) / steps,
        sum(turn.waited for turn in turns) / sum(seconds),
        max(turn.peak_bytes for turn in turns),
    )


def synchronise() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()

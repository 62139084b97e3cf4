"""Sides in turn: a few steps of each, again and again, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tools.benchmark.sides import Side


@dataclass(frozen=True)
class Rate:
    """A side's speed over the repeats."""

    rows_per_second: list[float]
    """Of each repeat."""
    seconds_per_step: float
    """The median of the repeats."""
    input_share: float
    """Of the time of all repeats, waited for input."""

    @property
    def median(self) -> float:
        """Rows a second."""
        return statistics.median(self.rows_per_second)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"median": self.median}


@dataclass(frozen=True)
class Ratio:
    """How much faster one side is than another, repeat by repeat."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(fast: Rate, slow: Rate) -> "Ratio":
        """Of two sides measured in the same turns."""
        return Ratio.over([one / other for one, other in zip(fast.rows_per_second, slow.rows_per_second, strict=True)])

    @staticmethod
    def over(ratios: Sequence[float]) -> "Ratio":
        """Median and range of what each repeat found."""
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interleaved(sides: Sequence[Side], *, repeats: int, steps: int, warm_up: int = 3) -> dict[str, Rate]:
    """Trains each side a few steps in turn and takes the time.

    Args:
        sides: with different names.
        repeats: turns of each side that count.
        steps: of a turn that count; one before them is not counted, for the others have emptied the caches.
        warm_up: steps of each side before all.
    """
    for side in sides:
        for _ in range(warm_up):
            side.step()
    found: dict[str, list[tuple[float, int, float]]] = {side.name: [] for side in sides}
    assert len(found) == len(sides)
    for _ in range(repeats):
        for side in sides:
            side.step()
            synchronise()
            waited, start = side.input.seconds, time.perf_counter()
            rows = sum(side.step() for _ in range(steps))
            synchronise()
            found[side.name].append((time.perf_counter() - start, rows, side.input.seconds - waited))
    return {name: _rate(turns, steps) for name, turns in found.items()}


def _rate(turns: list[tuple[float, int, float]], steps: int) -> Rate:
    seconds = [taken for taken, _, _ in turns]
    return Rate(
        [rows / taken for taken, rows, _ in turns], statistics.median(seconds) / steps, sum(wait for _, _, wait in turns) / sum(seconds)
    )


def synchronise() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()

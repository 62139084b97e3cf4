"""How a step's cost grows: with the batch, with T, with the tables' rows, with ranks."""

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.benchmark.apart import Apart
from tools.benchmark.interleaved import interleaved
from tools.benchmark.rows import RowSettings, write_rows
from tools.benchmark.setting import SMALL, Setting, Variant, base_tree

BATCHES = (256, 1024, 4096, 16_384)
LENGTHS = (10, 50, 100, 200)
TABLE_ROWS = (100_000, 1_000_000, 10_000_000)
RANKS = (1, 2)
_ITEMS = 50_000

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Point:
    value: int
    tree: dict[str, Any] = field(default_factory=dict)
    """What differs from the usual columns and tables."""
    batch: int | None = None
    items: int = _ITEMS
    ranks: int = 1


@dataclass(frozen=True)
class Growth:
    """Measures how a variant's step grows.

    Args:
        variant: the trainer that is measured.
        overrides: of every setting.
        threads: of a process; ranks have one each.
        device: cpu or cuda.
        repeats: turns of each point.
        steps: of a turn.
        small: few and small points, to see that all works.
        say: is told each point.
    """

    variant: Variant
    overrides: tuple[str, ...]
    threads: int
    device: str
    repeats: int
    steps: int
    small: bool
    say: Say

    def measure(self) -> dict[str, list[dict[str, Any]]]:
        """Axis -> its points: the value, seconds a step, rows a second, peak memory."""
        batches, lengths, rows = (
            ((16, 32), (4, 8), (2_000, 4_000)) if self.small else (BATCHES, LENGTHS, TABLE_ROWS)
        )
        axes = {
            "batch": [_Point(value, batch=value) for value in batches],
            "T": [_Point(value, {"max_length": value}) for value in lengths],
            "table rows": [_Point(value, {"table_rows": value}, items=value) for value in rows],
        }
        if self.device == "cpu":
            axes["ranks"] = [_Point(value, ranks=value) for value in RANKS]
        return {axis: self._measured(axis, points) for axis, points in axes.items()}

    def _measured(self, axis: str, points: list[_Point]) -> list[dict[str, Any]]:
        """All points of an axis in turns, each in processes of its own."""
        threads = 1 if axis == "ranks" else self.threads
        with tempfile.TemporaryDirectory() as folder, ExitStack() as processes:
            sides = []
            for point in points:
                setting, name = (
                    self._setting(Path(folder) / str(point.value), point),
                    f"{axis} {point.value:,}",
                )
                sides.append(
                    processes.enter_context(
                        Apart(
                            setting,
                            self.variant,
                            self.device,
                            threads,
                            ranks=point.ranks,
                            name=name,
                        )
                    )
                )
            rates = interleaved(sides, repeats=self.repeats, steps=self.steps)
        for name, rate in rates.items():
            self.say(
                f"{name}: {rate.median:,.0f} rows/s, {rate.seconds_per_step:.3f} s a step, "
                f"{rate.peak_bytes / 2**30:.2f} GiB"
            )
        return [
            {"value": point.value} | rate.as_dict()
            for point, rate in zip(points, rates.values(), strict=True)
        ]

    def _setting(self, folder: Path, point: _Point) -> Setting:
        folder.mkdir()
        usual = 32 if self.small else 1024
        more = () if point.batch is None else (f"train.batch_size={point.batch}",)
        setting = Setting.written(
            folder, base_tree(**point.tree), *(SMALL if self.small else ()), *self.overrides, *more
        )
        users = max(point.batch or 0, 4 * usual * max(RANKS))  # some batches an epoch, of each rank
        write_rows(
            folder,
            setting.config().schema_,
            RowSettings(users=users, items=point.items, test_users=1),
        )
        return setting


def exponent(points: Sequence[dict[str, Any]]) -> float:
    """``p`` of ``seconds ~ value^p`` over the upper half of the points, by the last and the one before: 1 is linear, 0 constant.

    The lower points are left out, for a step has costs that do not depend on its size.
    """
    before, last = points[-2], points[-1]
    return math.log(last["seconds_per_step"] / before["seconds_per_step"]) / math.log(
        last["value"] / before["value"]
    )

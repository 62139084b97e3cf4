"""How a step's cost grows: with the batch, with T, with the tables' rows, with ranks."""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.benchmark.jobs import Job, measured
from tools.benchmark.rows import RowSettings, write_rows
from tools.benchmark.setting import SMALL, Setting, Variant, base_tree

BATCHES = (256, 1024, 4096, 16_384)
LENGTHS = (10, 50, 100, 200)
TABLE_ROWS = (100_000, 1_000_000, 10_000_000)
RANKS = (1, 2)

Say = Callable[[str], None]


def growth(
    variant: Variant, overrides: Sequence[str], *, threads: int, device: str, small: bool, say: Say
) -> dict[str, list[dict[str, Any]]]:
    """Axis -> its points: the value, seconds a step, rows a second, peak memory.

    Args:
        variant: the trainer that is measured.
        overrides: of every setting.
        threads: of a process; ranks have one each.
        device: cpu or cuda.
        small: few and small points, to see that all works.
        say: is told each point.
    """
    batches, lengths, rows = ((16, 32), (4, 8), (2_000, 4_000)) if small else (BATCHES, LENGTHS, TABLE_ROWS)
    if small:
        overrides = (*SMALL, *overrides)
    grids: dict[str, list[tuple[int, dict[str, Any], tuple[str, ...]]]] = {
        "batch": [(value, {}, (f"train.batch_size={value}",)) for value in batches],
        "T": [(value, {"max_length": value}, ()) for value in lengths],
        "table rows": [(value, {"table_rows": value}, ()) for value in rows],
    }
    base = 32 if small else 1024
    found: dict[str, list[dict[str, Any]]] = {}
    for axis, points in grids.items():
        found[axis] = []
        for value, tree, more in points:
            users = max(value if axis == "batch" else base, 4 * base)
            items = value if axis == "table rows" else 50_000
            job = {"variant": variant, "threads": threads, "device": device, "steps": 3}
            found[axis].append(_point(axis, value, tree, (*overrides, *more), users, items, job, say))
    if device == "cpu":
        found["ranks"] = [
            _point("ranks", ranks, {}, tuple(overrides), 8 * base, 50_000, {"variant": variant, "ranks": ranks, "steps": 4}, say)
            for ranks in RANKS
        ]
    return found


def _point(
    axis: str, value: int, tree: dict[str, Any], overrides: tuple[str, ...], users: int, items: int, job: dict[str, Any], say: Say
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting.written(Path(folder), base_tree(**tree), *overrides)
        write_rows(Path(folder), setting.config().schema_, RowSettings(users=users, items=items, test_users=1))
        found = measured(Job(setting, **job))
    say(f"{axis} {value:,}: {found.rows_per_second:,.0f} rows/s, {found.seconds_per_step:.3f} s a step, {found.peak_bytes / 2**30:.2f} GiB")
    return {"value": value} | asdict(found)


def exponent(points: Sequence[dict[str, Any]]) -> float:
    """``p`` of ``seconds ~ value^p`` over the upper half of the points, by the last and the one before: 1 is linear, 0 constant.

    The lower points are left out, for a step has costs that do not depend on its size.
    """
    before, last = points[-2], points[-1]
    return math.log(last["seconds_per_step"] / before["seconds_per_step"]) / math.log(last["value"] / before["value"])

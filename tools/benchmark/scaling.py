"""Measures a step's cost as the batch, T, the tables' rows and the ranks grow."""

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mail_torchrec.model.precision import has_native_bfloat16
from tools.benchmark.random_rows import RowSettings, write_rows
from tools.benchmark.subprocess_trainer import SubprocessTrainer
from tools.benchmark.throughput import measure_in_turns
from tools.benchmark.workload import SMALL, Variant, Workload, base_config_tree

BATCHES = (256, 1024, 4096, 16_384)
LENGTHS = (10, 50, 100, 200)
TABLE_ROWS = (100_000, 1_000_000, 10_000_000)
RANKS = (1, 2)
RANKS_BF16 = "ranks, bf16"
"""Axis of ranks that compute in bfloat16, and average the towers' gradients in it."""
_IN_BFLOAT16 = ("train.precision=bfloat16", "sharding.communication.dense_gradients=bf16")
_ITEMS = 50_000
_BATCHES_AN_EPOCH = 4

Log = Callable[[str], None]
"""Prints one line of progress."""


@dataclass(frozen=True)
class ScalingPoint:
    """One point of an axis: a value, and the settings that it stands for."""

    value: int
    tree_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of :func:`base_config_tree`."""
    batch_size: int | None = None
    items: int = _ITEMS
    ranks: int = 1
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScalingExperiment:
    """Measures a variant's step along four axes.

    Args:
        variant: the variant of this project that is measured.
        overrides: of every configuration.
        threads: threads of a process; several ranks have one each.
        device: cpu or cuda.
        repeats: turns of each point.
        steps: steps of a turn.
        small: whether there are few and small points, to check that everything runs.
        log: is called with the result of each point.
    """

    variant: Variant
    overrides: tuple[str, ...]
    threads: int
    device: str
    repeats: int
    steps: int
    small: bool
    log: Log

    def measure(self) -> dict[str, list[dict[str, Any]]]:
        """Measures all axes.

        Returns:
            The points of each axis: value, seconds a step, rows a second, peak memory.
        """
        batches = (16, 32) if self.small else BATCHES
        lengths = (4, 8) if self.small else LENGTHS
        rows = (2_000, 4_000) if self.small else TABLE_ROWS
        axes = {
            "batch": [ScalingPoint(value, batch_size=value) for value in batches],
            "T": [ScalingPoint(value, {"max_length": value}) for value in lengths],
            "table rows": [
                ScalingPoint(value, {"table_rows": value}, items=value) for value in rows
            ],
        }
        if self.device == "cpu":
            axes["ranks"] = [ScalingPoint(value, ranks=value) for value in RANKS]
        if self.device == "cpu" and has_native_bfloat16(torch.device("cpu")):
            axes[RANKS_BF16] = [
                ScalingPoint(value, ranks=value, overrides=_IN_BFLOAT16) for value in RANKS
            ]
        return {axis: self._measure_axis(axis, points) for axis, points in axes.items()}

    def _measure_axis(self, axis: str, points: list[ScalingPoint]) -> list[dict[str, Any]]:
        """Measures all points of an axis in turns, each in processes of its own."""
        threads = 1 if axis in ("ranks", RANKS_BF16) else self.threads
        with tempfile.TemporaryDirectory() as folder, ExitStack() as processes:
            trainers = []
            for point in points:
                workload = self._workload(Path(folder) / str(point.value), point)
                trainer = SubprocessTrainer(
                    workload,
                    self.variant.with_overrides(*point.overrides),
                    self.device,
                    threads,
                    ranks=point.ranks,
                    name=f"{axis} {point.value:,}",
                )
                trainers.append(processes.enter_context(trainer))
            speeds = measure_in_turns(trainers, repeats=self.repeats, steps=self.steps)
        for name, speed in speeds.items():
            self.log(
                f"{name}: {speed.median:,.0f} rows/s, {speed.seconds_per_step:.3f} s a step, "
                f"{speed.peak_bytes / 2**30:.2f} GiB"
            )
        return [
            {"value": point.value} | speed.as_dict()
            for point, speed in zip(points, speeds.values(), strict=True)
        ]

    def _workload(self, folder: Path, point: ScalingPoint) -> Workload:
        """Writes the configuration and the rows of a point."""
        folder.mkdir()
        usual_batch = 32 if self.small else 1024
        overrides = [*(SMALL if self.small else ()), *self.overrides]
        if point.batch_size is not None:
            overrides.append(f"train.batch_size={point.batch_size}")
        workload = Workload.write(folder, base_config_tree(**point.tree_options), *overrides)
        users = max(point.batch_size or 0, _BATCHES_AN_EPOCH * usual_batch * max(RANKS))
        rows = RowSettings(users=users, items=point.items, test_users=1)
        write_rows(folder, workload.config().schema_, rows)
        return workload


def scaling_exponent(points: Sequence[dict[str, Any]]) -> float:
    """Estimates ``p`` of ``seconds ~ value^p``: 1 is linear, 0 constant.

    Only the last two points count, for a step has costs that do not depend on its size.
    """
    before, last = points[-2], points[-1]
    growth = math.log(last["seconds_per_step"] / before["seconds_per_step"])
    return growth / math.log(last["value"] / before["value"])

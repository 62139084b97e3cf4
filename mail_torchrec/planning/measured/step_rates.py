"""Rates of whole steps: small models are trained by plans of few and of many groups of tables.

What a step takes beside its kernels, bytes and products follows from no rate of these: operators
that move data, the pipeline, and ranks that wait for each other.

Shape letters: ``P`` measured points, ``C`` terms that are fitted.
"""

import json
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from mail_torchrec.config import Config
from mail_torchrec.distributed.collectives import gather_objects, world_size
from mail_torchrec.embeddings.hardware import Hardware
from mail_torchrec.embeddings.rates.machine_rates import StepRates
from mail_torchrec.planning.estimate import PlanEstimate
from mail_torchrec.planning.estimator import estimate_saved_plan
from mail_torchrec.planning.measured.fitting import fit
from mail_torchrec.planning.measured.plan_steps import (
    SizedEncoders,
    free_memory,
    random_batches,
    run_steps,
    timed_steps,
)
from mail_torchrec.planning.scenarios import Scenario
from mail_torchrec.train.assembly import assemble

_WARM_UP_STEPS, _STEPS = 3, 12
_TABLES = ("item", "shop", "age", "city", "hour")
_TABLE_ROWS = 20_000
_OPTIMIZER = {"name": "rowwise_adagrad"}
_COLUMNS: dict[str, dict[str, Any]] = {
    "user": {"group": "group_key"},
    "clicked": {"group": "label"},
    "item": {"group": "item"},
    "shop": {"group": "item"},
    "age": {"group": "attribute"},
    "city": {"group": "context"},
    "hour": {"group": "context"},
}
# Cuts of a model whose tables lie in five groups instead of two.
_CUTS = {"shop": "row_wise", "city": "row_wise", "hour": "column_wise"}
_LEAST_MS = 0.01


@dataclass(frozen=True)
class StepShape:
    """A small model, and rows of its batches."""

    batch_size: int
    dim: int
    max_length: int
    """Behaviours of a row that there is room for; it has one."""
    tower: str = "base_dnn"
    is_cut: bool = False
    """Its tables lie in five groups instead of two."""


SHAPES: tuple[StepShape, ...] = (
    StepShape(64, 8, 4),
    StepShape(64, 8, 4, is_cut=True),
    StepShape(64, 8, 4, tower="din"),
    StepShape(512, 32, 50, is_cut=True),
    StepShape(1024, 32, 50),
    StepShape(2048, 64, 50),
)
"""Models that are trained: they differ in groups of tables, in operators, and in bytes."""


def measure_steps(device: torch.device, hardware: Hardware) -> StepRates:
    """Measures steps, and fits rates to what they take beyond their estimate.

    Every rank calls it.

    Args:
        device: of this rank.
        hardware: with the rates of copies, collectives, lookups and towers, and none of steps.
    """
    points = []
    for shape in SHAPES:
        ms, estimate = _measure(shape, device, hardware)
        written = estimate.dense_cost.step(shape.batch_size, world_size()).written_bytes
        beyond = max(_LEAST_MS, ms - estimate.step_time.total)
        # On one rank all models have two groups, and plans count none.
        groups = len(estimate.plan.groups) if world_size() > 1 else 0
        points.append((groups, estimate.dense_cost.operators, written, beyond))
    terms_PC = np.array([(1.0, groups, ops / 1e3, size / 1e6) for groups, ops, size, _ in points])
    fixed, of_groups, of_operators, of_bytes = fit(terms_PC, np.array([p[-1] for p in points]))
    return StepRates(
        fixed_ms=fixed,
        ms_a_group=of_groups,
        ms_a_thousand_operators=of_operators,
        ms_a_mb=of_bytes,
        measured=points,
    )


def _measure(
    shape: StepShape, device: torch.device, hardware: Hardware
) -> tuple[float, PlanEstimate]:
    """Returns the milliseconds of a step, the median of the slowest rank, and its estimate."""
    config, num_rows = _config(shape, device), dict.fromkeys(_TABLES, _TABLE_ROWS)
    free_memory(device)
    assembled = assemble(config, SizedEncoders({}, {}, {}, num_rows), device, None)
    assembled.optimizer.plan(10**9)
    batches = random_batches(config, assembled.feature_tables, num_rows, {})
    run_steps(assembled, batches, _WARM_UP_STEPS)
    ms = max(gather_objects(median(timed_steps(assembled, batches, _STEPS, device))))
    scenario = Scenario(config, num_rows, hardware, world_size(), ())
    return ms, estimate_saved_plan(scenario, json.loads(assembled.plan_file))


def _config(shape: StepShape, device: torch.device) -> Config:
    lists: dict[str, Any] = {"group": "behaviour", "kind": "list", "max_length": shape.max_length}
    columns = _COLUMNS | {"seen": lists | {"table": "item"}, "visited": lists | {"table": "shop"}}
    cuts = _CUTS if shape.is_cut and world_size() > 1 else {}
    sharding = {
        "sharding_types": ["table_wise"],
        "constraints": {table: {"sharding_types": [cut]} for table, cut in cuts.items()},
        "min_partition": shape.dim // 2,
        "pooling_factors": {"seen": 1.0, "visited": 1.0},
    }
    tower = {"tower": shape.tower, "tower_options": {"hidden_dims": [32, 16]}, "zero_shot": None}
    train = {"batch_size": shape.batch_size, "device": device.type, "tables": _OPTIMIZER}
    tree = {
        "name": "calibration",
        "data": {"root": "NONE"},
        "schema": {"dim": shape.dim, "columns": columns},
        "model": tower,
        "sharding": sharding,
        "train": train,
    }
    return Config.model_validate(tree)

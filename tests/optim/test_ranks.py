"""Clipping, accumulation, decay, schedules, averages and frozen parts on two ranks, as on one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_equal_ranks import MODELS, PLANS, load, train_on_ranks
from tests.support.ranks import run_ranks
from tests.support.small_rows import write_rows

pytestmark = pytest.mark.distributed

OPTIMIZATION: dict[str, Any] = {
    "schedule": {"name": "step", "every": 1, "gamma": 0.5, "warmup_steps": 2},
    "weight_decay": 0.1,
    "clip_norm": 0.05,
    "accumulate": 2,
    "ema": {"decay": 0.5},
    "freeze": ["tables.age"],
    "tables": {
        "eps": 0.1,
        "learning_rate": 0.1,
        "schedule": {"warmup_steps": 3},
    },
}


@pytest.mark.parametrize("plan", ["row_wise", "column_wise"])
def test_two_ranks_optimize_as_one_does(tmp_path: Path, plan: str) -> None:
    write_rows(tmp_path / "train/a.parquet", 200, seed=1)
    found = {}
    for world_size, sharding in ((1, PLANS["table_wise"]), (2, PLANS[plan])):
        folder = tmp_path / str(world_size)
        arguments = str(tmp_path), sharding, MODELS["mail_dmr"], str(folder / "weights")
        results = run_ranks(world_size, train_on_ranks, folder, *arguments, OPTIMIZATION)
        found[world_size] = results, load(folder / "weights")
    (one,), expected = found[1]
    two, weights = found[2]
    for step, losses in enumerate(one["losses"]):
        for name, value in losses.items():
            mean = sum(result["losses"][step][name] for result in two) / 2
            assert mean == pytest.approx(value, rel=1e-4, abs=1e-6), (step, name)
    for key, value in expected.items():  # the bounds of test_equal_ranks.py
        bound = 6e-4 if key.endswith("running_mean") else 1e-4
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=bound, msg=key)
    for cohort, metrics in one["metrics"].items():
        for result in two:
            assert result["metrics"][cohort] == pytest.approx(metrics, abs=1e-3)

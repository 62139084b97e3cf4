"""Batches of one row: every tower, zero-shot variant and baseline trains on one and scores one."""

import json
import math
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from mail_torchrec.config import Config
from mail_torchrec.distributed.batch_norm import convert_batch_norms
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.towers.registry import TOWERS
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import SCHEMA, baseline_tree, config_tree, write_rows

HIDDEN = {"hidden_dims": [16, 8]}
OPTIONS: dict[str, dict[str, Any]] = {"emblr": {}, "din": HIDDEN | {"activation": "dice"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"variant": "none"},
    "single": {"variant": "single"},
    "dual": {"variant": "dual"},
    "full": {"variant": "full"},
    "paired_mse": {"alignment": "paired_mse"},
    "contrastive": {"alignment": "contrastive"},
    "standardised": {"standardise_targets": True},
    "pooled": {"reconstruction_target": "pooled", "standardise_targets": True},
    "all_fields": {"input_fields": "all_fields", "decoders": "per_group", "pooling": "concat"},
    "predicted": {"padding": "masked", "virtual_length": "predicted"},
    "sampled": {"loss_sample_share": 0.1},
    "sum": {"reduction": "sum"},
}
assert len(VARIANTS) >= len(TOWERS), "each of both is in a pair"
BASELINES = ("mean_fill", "llae", "meta_emb", "cvar", "mwuf")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training rows, one of them a new user's, and one test row."""
    folder = tmp_path_factory.mktemp("one")
    for part, rows in (("train", [0, 1, 2]), ("test", [3])):
        path = folder / part / "a.parquet"
        write_rows(path, 60, seed=1)
        table = pq.read_table(path)
        lengths = np.array([len(history) for history in table["history"].to_pylist()])
        chosen = [*np.flatnonzero(lengths)[[0, 1]], *np.flatnonzero(lengths == 0)[[0, 1]]]
        pq.write_table(table.take([chosen[row] for row in rows]), path)
    return folder


def of_tower(name: str, variant: str) -> dict[str, Any]:
    zero_shot = config_tree(Path())["model"]["zero_shot"] | {"dropout": 0.5} | VARIANTS[variant]
    schema = SCHEMA | {"dim": 1 if name == "emblr" else SCHEMA["dim"]}
    options = OPTIONS.get(name, HIDDEN)
    return {
        "schema": schema,
        "model": {"tower": name, "tower_options": options, "zero_shot": zero_shot},
    }


@pytest.mark.parametrize(
    "sections",
    [
        *(
            pytest.param(of_tower(tower, variant), id=f"{tower}-{variant}")
            for tower, variant in zip(cycle(TOWERS), VARIANTS, strict=False)
        ),
        *(pytest.param(baseline_tree(name), id=name) for name in BASELINES),
    ],
)
def test_a_batch_of_one_row_trains_and_is_scored(
    root: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    steps = {"batch_size": 2, "eval_batch_size": 1, "log_every": 1, "epochs": 2}
    tree = config_tree(root, train=steps | {"save_predictions": True}) | sections
    metrics = train(Config.model_validate(tree), RunDir(tmp_path / "run"))
    assert metrics["all"].items() >= {"auc": None, "gauc": None, "rows": 1, "users": 1}.items()
    assert metrics["all"]["log_loss"] > 0
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    losses = [line for line in lines if "input_wait" in line]
    assert len(losses) == 4, "three rows in batches of at most two: one of one row an epoch"
    assert all(math.isfinite(value) for line in losses for value in line.values())
    assert np.isfinite(Predictions.load(tmp_path / "run/predictions").scores_R).all()
    # Weights and moving statistics are sound, too: rows of several are scored as each by itself.
    found = []
    for size in (1, 3):
        path = tmp_path / f"{size}"
        overrides = [f"train.eval_batch_size={size}"]
        evaluate_run(RunDir(tmp_path / "run"), str(root / "train"), overrides, path)
        found.append(Predictions.load(path).scores_R)
    assert np.allclose(*found, atol=1e-5)


def test_one_row_is_normalised_by_the_moving_statistics_and_leaves_them() -> None:
    torch.manual_seed(1)
    found, expected = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
    convert_batch_norms(found, 1)
    for rows in (4, 2):
        x = torch.randn(rows, 5) * 3 + 1
        assert torch.equal(found(x), expected(x))
    one = torch.randn(1, 5)
    assert torch.equal(found(one), expected.eval()(one))
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_batch_norm_without_moving_statistics_still_refuses_one_row() -> None:
    norm = nn.BatchNorm1d(5, track_running_stats=False)
    convert_batch_norms(norm, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(torch.randn(1, 5))
    assert norm(torch.randn(1, 5, 7)).shape == (1, 5, 7)

"""Runs with every kind of column at once, on ranks: resumed, resharded, under every plan."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.train.assembly import assemble, table_keys
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.state import restore
from tests.checkpoint.test_reshard import learned
from tests.checkpoint.test_resume import as_killed, assert_equal_runs, log, tensors
from tests.support.every_kind import every_kind, write_data
from tests.support.made_once import made_once
from tests.support.processes import without_launcher
from tests.support.ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.long]

PLANS: dict[str, dict[str, Any]] = {
    "row_wise": {"sharding_types": ["row_wise"]},
    "table_wise": {"sharding_types": ["table_wise"]},
    "column_wise": {"sharding_types": ["column_wise"], "min_partition": 4},
    "table_column_wise": {
        "sharding_types": ["table_wise"],
        "min_partition": 4,
        "constraints": {
            name: {"sharding_types": ["table_column_wise"]}
            for name in ("age", "city", "weekday", "city_weekday", "city_item", "price_bucket")
        },
    },
}
"""TorchRec has table_row_wise and grid_shard on CUDA alone."""


def tree(root: Path, plan: str) -> dict[str, Any]:
    return every_kind(
        root,
        data={"root": str(root)},
        train={"log_every": 1, "batch_size": 20},
        checkpoint={"every": 5, "keep": 9},
        sharding=PLANS[plan],
    )


def trained(root: Path, folder: Path, plan: str, num_ranks: int, *options: str) -> Path:
    """Trains on so many ranks; returns the run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{plan}.yaml").write_text(yaml.safe_dump(tree(root, plan), sort_keys=False))
    words = ["train", "--config", str(folder / f"{plan}.yaml"), "--run-dir", str(folder / plan)]
    ended = without_launcher(num_ranks, *words, *options)
    assert {rank.code for rank in ended} == {0}, ended[0].output
    return folder / plan


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, and a run on them by two ranks under the first plan."""

    def make(folder: Path) -> None:
        write_data(folder, 250)
        trained(folder, folder, "row_wise", 2)

    return made_once(tmp_path_factory, "every_kind_on_ranks", make)


def test_two_ranks_end_as_if_never_stopped(root: Path, tmp_path: Path) -> None:
    as_killed(root / "row_wise", tmp_path / "row_wise", 5)
    assert_equal_runs(root / "row_wise", trained(root, tmp_path, "row_wise", 2, "--resume"))


@pytest.mark.parametrize(("plan", "num_ranks"), [("column_wise", 2), ("row_wise", 1)])
def test_other_ranks_and_plans_go_on(root: Path, tmp_path: Path, plan: str, num_ranks: int) -> None:
    as_killed(root / "row_wise", tmp_path / plan, 5)
    resumed = trained(root, tmp_path, plan, num_ranks, "--resume")
    found, expected = log(resumed), log(root / "row_wise")
    cut = [
        {name: count for name, count in line["counts"].items() if name.startswith("cut/")}
        for lines in (found, expected)
        for line in lines
        if "epoch" in line
    ]
    assert len(cut) == 2 and cut[0] == cut[1]  # each row of the epoch once
    if num_ranks == 2:
        assert_close_runs(resumed, root / "row_wise")


def restored(root: str, run: str) -> int:
    """Restores a run's last checkpoint under every plan; every tensor is its own to the bit."""
    [checkpoint] = RunDir(Path(run)).checkpoints.published()[-1:]
    expected = tensors(Path(run))
    for plan in ("row_wise", "table_wise", "column_wise"):
        config = Config.model_validate(tree(Path(root), plan))
        encoders = Encoders.load(RunDir(Path(run)).vocabularies, config.schema_)
        config = config.with_dims(encoders.num_rows)
        assembled = assemble(config, encoders, torch.device("cpu"))
        tables = table_keys(config, assembled.feature_tables, encoders)
        restore(assembled, checkpoint, int(checkpoint.name[5:]), tables, set())
        found = learned(assembled)
        assert len(found) > 100
        for key, value in found.items():
            assert torch.equal(value, expected[key].double()), (plan, key)
    return len(found)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_any_ranks_and_plan_restore_every_tensor(
    root: Path, tmp_path: Path, num_ranks: int
) -> None:
    run_ranks(num_ranks, restored, tmp_path / "ranks", str(root), str(root / "row_wise"))


@pytest.mark.parametrize("plan", ["table_wise", "table_column_wise"])
def test_every_sharding_type_trains_alike(root: Path, tmp_path: Path, plan: str) -> None:
    assert_close_runs(trained(root, tmp_path, plan, 2), root / "row_wise")


def assert_close_runs(one: Path, other: Path) -> None:
    """Losses of every step, weights and metrics, but for the order of sums."""
    losses = [
        [value for line in log(run) for name, value in line.items() if name.startswith("loss")]
        for run in (one, other)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    first, second = tensors(one), tensors(other)
    weights = [key for key in first if key.startswith("model.") and "running" not in key]
    assert weights
    for key in weights:
        torch.testing.assert_close(first[key], second[key], rtol=1e-3, atol=1e-4, msg=key)
    found, expected = (json.loads((run / "metrics.json").read_text()) for run in (one, other))
    assert found["all"]["log_loss"] == pytest.approx(expected["all"]["log_loss"], rel=1e-3)

"""Evaluation on the way: it moves nothing, chooses the best checkpoint, and is resumed exactly."""

import errno
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from mail_torchrec.checkpoint.folder import Checkpoints
from mail_torchrec.checkpoint.manifest import read_manifest
from mail_torchrec.config import Config, load_config
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.distributed.preemption import PreemptionHandler
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.export.stored_weights import weights_folder
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.synthetic.world import WorldSettings
from mail_torchrec.synthetic.writer import write_world
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.train.validator import Validator, _KeptBatches
from tests.checkpoint.test_resume import configuration, log, tensors
from tests.support.processes import free_port
from tests.support.ranks import run_ranks
from tests.support.small_rows import write_rows

VALIDATION = {"evaluate_every": "3 steps", "early_stopping": {"metric": "log_loss"}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train" / "a.parquet", 160, seed=1)
    write_rows(folder / "train" / "b.parquet", 90, seed=2)
    write_rows(folder / "valid" / "v.parquet", 110, seed=4)
    write_rows(folder / "test" / "c.parquet", 120, seed=3)
    return folder


def validated(root: Path, **sections: dict[str, Any]) -> Config:
    """Two epochs of 8 steps with dropout and batch norm; validation rows in files of their own."""
    data = {"root": str(root), "validation": {"path": "valid"}} | sections.pop("data", {})
    train_settings = VALIDATION | sections.pop("train", {})
    return configuration(root, data=data, train=train_settings, **sections)


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    return [line for line in log(run_dir) if "validation" in line]


def without_seconds(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same_training(one: Path, other: Path) -> None:
    """Everything in the last checkpoint and every loss, to the bit."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    losses = [[line for line in log(path) if "loss/L_rt" in line] for path in (one, other)]
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(validated(root), RunDir(path))
    return path


@pytest.mark.parametrize(
    "variant",
    [{}, {"train": {"ema": {"decay": 0.5}}}, {"data": {"num_workers": 1}}],
    ids=["plain", "ema", "workers"],
)
def test_an_evaluation_on_the_way_moves_nothing(
    root: Path, tmp_path: Path, variant: dict[str, dict[str, Any]]
) -> None:
    train(validated(root, **variant), RunDir(tmp_path / "with"))
    plain = validated(root, **variant).model_copy(
        update={"data": validated(root, **variant).data.model_copy(update={"validation": None})}
    )
    settings = plain.train.model_copy(update={"early_stopping": type(plain.train)().early_stopping})
    train(plain.model_copy(update={"train": settings}), RunDir(tmp_path / "without"))
    assert_same_training(tmp_path / "with", tmp_path / "without")
    steps = [line["step"] for line in evaluations(tmp_path / "with")]
    assert steps == [3, 6, 9, 12, 15, 16]


def test_the_best_checkpoint_is_tested_evaluated_and_exported(
    root: Path, finished: Path, tmp_path: Path
) -> None:
    found = {line["step"]: line["validation"] for line in evaluations(finished)}
    best = min(found, key=lambda step: found[step]["all"]["log_loss"])
    run_dir = RunDir(finished)
    metrics = json.loads(run_dir.metrics.read_text())
    assert metrics.pop("checkpoint") == {"step": best}
    assert (run_dir.checkpoints.path / "best").read_text() == f"step-{best:08d}\n"
    assert evaluate_run(run_dir, None, []) == metrics
    again = evaluate_run(run_dir, str(root / "valid"), [])
    assert again["all"]["log_loss"] == pytest.approx(found[best]["all"]["log_loss"], abs=1e-12)
    assert weights_folder(run_dir).name == f"step-{best:08d}"


def test_a_retained_best_outlives_newer_checkpoints(root: Path, tmp_path: Path) -> None:
    config = validated(root, checkpoint={"every": 2, "keep": 1})
    with patch(
        "mail_torchrec.validation.progress._gain",
        side_effect=lambda settings, value, other: float("inf") if other is None else -1.0,
    ):
        train(config, RunDir(tmp_path / "run"))
    names = [path.name for path in RunDir(tmp_path / "run").checkpoints.published()]
    assert names == ["step-00000003", "step-00000016"]
    assert json.loads((tmp_path / "run/metrics.json").read_text())["checkpoint"] == {"step": 3}


SPLITS: dict[str, dict[str, Any]] = {
    "share": {"share": 0.3},
    "dates": {"last_days": 1, "column": "date"},
    "seconds": {"last_days": 2, "column": "second", "unit": "second"},
}


def is_kept_out(table: pa.Table, kind: str) -> list[bool]:
    if kind == "share":
        hashes = hash64(table["user"], "validation")
        return [value < 0.3 * 2**64 for value in hashes.tolist()]
    first = {"dates": 3, "seconds": 2}[kind]
    return [second >= first * 86_400 for second in table["second"].to_pylist()]


@pytest.mark.parametrize("kind", SPLITS)
def test_a_run_with_rows_kept_out_is_one_on_files_without_them(
    root: Path, tmp_path: Path, kind: str
) -> None:
    """Vocabularies, scales, weights and optimizer state, to the bit."""
    for part in ("a", "b"):
        table = pq.read_table(root / "train" / f"{part}.parquet")
        days = np.arange(len(table)) % 4
        table = table.append_column("date", pa.array(days.astype("datetime64[D]")))
        table = table.append_column("second", pa.array(days * 86_400))
        for folder in ("all/train", "without/train"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / f"all/train/{part}.parquet", row_group_size=30)
        with pq.ParquetWriter(tmp_path / f"without/train/{part}.parquet", table.schema) as writer:
            for start in range(0, len(table), 30):
                group = table.slice(start, 30)
                writer.write_table(group.filter([not one for one in is_kept_out(group, kind)]))
    rows = pq.read_table(tmp_path / "all/train")
    for folder in ("all", "without"):
        write_rows(tmp_path / folder / "test" / "c.parquet", 120, seed=3)
    settings = {"data": {"validation": SPLITS[kind]}, "train": VALIDATION}
    for name, sections in (("all", settings), ("without", {})):
        data = {"root": str(tmp_path / name)} | sections.pop("data", {})
        train(configuration(tmp_path, data=data, **sections), RunDir(tmp_path / f"{name}-run"))
    one, other = tmp_path / "all-run", tmp_path / "without-run"
    assert_same_training(one, other)
    for path in (other / "vocabularies").glob("*.parquet"):
        assert pq.read_table(path) == pq.read_table(one / "vocabularies" / path.name)
    record = json.loads((one / "data.json").read_text())
    assert record["train"]["rows"] == 250
    assert record["validation"]["rows"] == sum(is_kept_out(rows, kind))
    assert evaluations(one)[0]["validation"]["all"]["rows"] == sum(is_kept_out(rows, kind))


def stopped_at(batch: int) -> Any:
    """Makes the run be told to stop before a batch of an evaluation."""
    original, count = _KeptBatches.__iter__, [0]

    def interrupted(self: _KeptBatches) -> Any:
        for one in original(self):
            count[0] += 1
            if count[0] == batch:
                self._should_interrupt = lambda: True
            yield one

    return patch.object(_KeptBatches, "__iter__", interrupted)


@pytest.mark.parametrize("batch", [1, 3, 11], ids=["first", "second", "last"])
def test_a_run_that_is_stopped_within_an_evaluation_resumes_to_the_bit(
    root: Path, finished: Path, tmp_path: Path, batch: int
) -> None:
    run_dir = RunDir(tmp_path / "run")
    with (
        stopped_at(batch),
        patch.object(PreemptionHandler, "exit_code", 143),
        pytest.raises(SystemExit),
    ):
        train(validated(root), run_dir)
    assert not run_dir.metrics.exists()
    train(validated(root), run_dir, resume=True)
    assert_same_training(finished, run_dir.path)
    assert without_seconds(log(finished)) == without_seconds(log(run_dir.path))
    assert json.loads(run_dir.metrics.read_text()) == json.loads(
        RunDir(finished).metrics.read_text()
    )


def two_runs(root: str, folder: str, ports: list[str]) -> None:
    """Trains a run with validation rows and one without, on these ranks."""
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    for name, config, port in (
        ("with", validated(Path(root)), ports[0]),
        ("without", configuration(Path(root)), ports[1]),
    ):
        os.environ["MASTER_PORT"] = port
        train(config, RunDir(Path(folder) / name))
    os.environ["MASTER_PORT"] = ports[2]
    dist.init_process_group("gloo")


@pytest.mark.distributed
@pytest.mark.slow
def test_nor_does_it_on_two_ranks(root: Path, tmp_path: Path) -> None:
    ports = [str(free_port()) for _ in range(3)]
    run_ranks(2, two_runs, tmp_path / "ranks", str(root), str(tmp_path), ports)
    assert_same_training(tmp_path / "with", tmp_path / "without")
    found = {line["step"]: line["validation"] for line in evaluations(tmp_path / "with")}
    assert list(found) == [3, 6, 8]
    best = json.loads((tmp_path / "with/metrics.json").read_text())["checkpoint"]["step"]
    alone = evaluate_run(RunDir(tmp_path / "with"), str(root / "valid"), [])
    assert alone["all"]["auc"] == pytest.approx(found[best]["all"]["auc"], abs=1e-6)


def test_a_best_checkpoint_that_cannot_be_written_is_not_the_best(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The one before it stays the best, and a later one may become it."""
    original = Checkpoints.publish

    def publish(self: Checkpoints, step: int) -> Path:
        if step in (6, 9):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, step)

    falling = iter([0.9, 0.8, 0.7, 0.85, 0.6, 0.95])  # log loss after 3, 6, 9, 12, 15, 16 steps
    with (
        patch.object(Checkpoints, "publish", publish),
        patch.object(Validator, "_value", lambda self, metrics: next(falling)),
    ):
        train(validated(root, checkpoint={"every": 0}), RunDir(tmp_path / "run"))
    told = capfd.readouterr().err
    assert "the checkpoint of step 6, the best so far, could not be written" in told
    assert "the best one that is saved is that of step 3" in told
    manifests = {
        path.name[-2:]: read_manifest(path).validation.best_step
        for path in RunDir(tmp_path / "run").checkpoints.published()
    }
    assert manifests == {"03": 3, "12": 12, "15": 15, "16": 15}


def test_other_validation_rows_are_refused_on_resuming(
    root: Path, finished: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "other" / "v.parquet", 110, seed=5)
    other = {"validation": {"path": "../" * 20 + str(tmp_path / "other")[1:]}}
    with pytest.raises(ValueError, match=r"validation data .*'v.parquet' has"):
        train(validated(root, data=other), RunDir(finished), resume=True)


def test_early_stopping_without_validation_rows_is_refused(root: Path, tmp_path: Path) -> None:
    config = configuration(root, train={"early_stopping": {"patience": 2}})
    with pytest.raises(ValueError, match=r"there are none; set data.validation.share"):
        train(config, RunDir(tmp_path / "run"))


def test_an_exported_model_is_the_best_checkpoint(
    root: Path, finished: Path, tmp_path: Path
) -> None:
    export(ExportOptions(RunDir(finished), tmp_path / "model"))
    manifest = json.loads((tmp_path / "model/manifest.json").read_text())
    assert manifest["metrics"]["all"] == json.loads(RunDir(finished).metrics.read_text())["all"]


def test_validation_stops_where_a_second_epoch_overfits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The training loss falls all the while; the validation gets worse than a constant."""
    write_world(WorldSettings(users=1200, items=3000, click_scale=0.3, files=2), tmp_path / "world")
    overrides = [
        f"data.root={tmp_path / 'world'}",
        "data.validation.share=0.2",
        "model.tower=base_dnn",
        "model.tower_options={hidden_dims: [32, 16], dropout: 0.0}",
        "model.zero_shot=null",
        "train.batch_size=128",
        "train.epochs=4",
        "train.learning_rate=0.01",
        "train.evaluate_every=0.5 epochs",
        "train.early_stopping={metric: log_loss, patience: 2}",
        "schema.dim=8",
    ]
    config = load_config(Path("launch/configs/synthetic.yaml"), overrides)
    run_dir = RunDir(tmp_path / "run")
    metrics = train(config, run_dir)
    found = evaluations(run_dir.path)
    entropies = [line["validation"]["all"]["normalised_entropy"] for line in found]
    losses = [line["loss/L_rt"] for line in log(run_dir.path) if "loss/L_rt" in line]
    assert entropies[-1] > 1 > min(entropies)
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])
    best = found[int(np.argmin(entropies))]["step"]
    assert [line["step"] for line in found][-3] == best
    assert found[-1]["step"] < 4 * found[1]["step"]
    assert json.loads(run_dir.metrics.read_text())["checkpoint"] == {"step": best}
    assert weights_folder(run_dir).name == f"step-{best:08d}"
    assert evaluate_run(run_dir, None, []) == metrics
    told = capfd.readouterr().err
    assert f"stopped early after step {found[-1]['step']}" in told
    assert "more steps made the model worse: validation has log_loss" in told

"""Evaluation on the way: it moves nothing, chooses the best checkpoint, and is resumed exactly."""

import errno
import json
import os
import shutil
import signal
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
from mail_torchrec.checkpoint.inspection import checkpoint_list
from mail_torchrec.checkpoint.manifest import read_manifest
from mail_torchrec.config import Config
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.distributed.preemption import PreemptionHandler
from mail_torchrec.export.stored_weights import weights_folder
from mail_torchrec.predict.evaluate import evaluate_run
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


def test_an_evaluation_on_the_way_moves_nothing(root: Path, finished: Path, tmp_path: Path) -> None:
    train(configuration(root), RunDir(tmp_path / "without"))
    assert_same_training(finished, tmp_path / "without")
    assert [line["step"] for line in evaluations(finished)] == [3, 6, 9, 12, 15, 16]


def test_nor_does_one_of_averaged_weights(root: Path, tmp_path: Path) -> None:
    averaged: dict[str, Any] = {"epochs": 1, "ema": {"decay": 0.5}}
    train(validated(root, train=averaged), RunDir(tmp_path / "with"))
    train(configuration(root, train=averaged), RunDir(tmp_path / "without"))
    assert_same_training(tmp_path / "with", tmp_path / "without")


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
    listed = checkpoint_list(finished).splitlines()
    assert [line.split()[0] for line in listed if line.endswith(", the best")] == [
        f"step-{best:08d}"
    ]


@pytest.mark.parametrize("content", [None, "", "step-99\n", "../step-00000001\n", b"\xff\x00"])
def test_a_best_file_that_is_gone_or_names_nothing_is_not_believed(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | bytes | None
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    named, run_dir = tmp_path / "run" / "checkpoints" / "best", RunDir(tmp_path / "run")
    named.unlink()
    if content is not None:
        named.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert weights_folder(run_dir).name == weights_folder(RunDir(finished)).name
    assert ("the best checkpoint is read from the newest one" in caplog.text) == (
        content is not None
    )
    assert checkpoint_list(tmp_path / "run") == checkpoint_list(finished)


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
        short = sections.pop("train", {}) | {"epochs": 1, "log_every": 1}
        config = configuration(tmp_path, data=data, train=short, checkpoint={"every": 0})
        train(config, RunDir(tmp_path / f"{name}-run"))
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


@pytest.mark.parametrize("batch", [2, 11], ids=["first", "last"])
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


def signalled_at(batch: int, is_hit: bool) -> Any:
    """Sends this rank SIGTERM before a batch of its evaluations on the way."""
    original, count = _KeptBatches.__iter__, [0]

    def signalled(self: _KeptBatches) -> Any:
        for one in original(self):
            count[0] += 1
            if is_hit and count[0] == batch:
                os.kill(os.getpid(), signal.SIGTERM)
            yield one

    return patch.object(_KeptBatches, "__iter__", signalled)


def without_and_stopped(root: str, folder: str, data: dict[str, Any], ports: list[str]) -> Any:
    """Trains a run without validation rows, and one that is stopped within an evaluation.

    The last rank alone gets SIGTERM, in the second evaluation; the run is resumed.

    Returns:
        The exit code of the run that was stopped.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    settings: dict[str, Any] = {"epochs": 1, "eval_batch_size": 16}
    evaluated = validated(Path(root), data=data, train=settings)
    plain = configuration(Path(root), data={"root": root} | data, train=settings)

    def run(name: str, config: Config, *, resume: bool = False) -> None:
        os.environ["MASTER_PORT"] = ports.pop()
        train(config, RunDir(Path(folder) / name), resume=resume)

    run("without", plain)
    batches = -(-110 // 16 // world)  # of an evaluation, a rank
    with signalled_at(batches + 1, rank == world - 1), pytest.raises(SystemExit) as stopped:
        run("with", evaluated)
    steps = [line["step"] for line in evaluations(Path(folder) / "with")]
    run("with", evaluated, resume=True)
    return stopped.value.code, steps


def on_this_rank(*args: Any) -> Any:
    """Calls :func:`without_and_stopped` in the place of this rank's process group."""
    os.environ |= {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    dist.destroy_process_group()
    found = without_and_stopped(*args)
    os.environ["MASTER_PORT"] = args[-1].pop()
    dist.init_process_group("gloo")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_ranks", "data"),
    [
        pytest.param(1, {"num_workers": 1}, marks=pytest.mark.long),
        pytest.param(2, {}, marks=pytest.mark.distributed),
    ],
    ids=["reader process", "two ranks"],
)
def test_sigterm_within_an_evaluation_moves_nothing_either(
    root: Path, tmp_path: Path, num_ranks: int, data: dict[str, Any]
) -> None:
    """Stopped by a signal to one rank and resumed, as the run without any evaluation."""
    ports = [str(free_port()) for _ in range(4)]
    given = str(root), str(tmp_path), data, ports
    codes = run_ranks(num_ranks, on_this_rank, tmp_path / "ranks", *given)
    assert codes == [(143, [3])] * num_ranks
    assert_same_training(tmp_path / "with", tmp_path / "without")
    found = {line["step"]: line["validation"] for line in evaluations(tmp_path / "with")}
    assert list(found) == ([3, 6, 8] if num_ranks == 1 else [3, 4])
    best = json.loads((tmp_path / "with/metrics.json").read_text())["checkpoint"]["step"]
    alone = evaluate_run(RunDir(tmp_path / "with"), str(root / "valid"), ["data.num_workers=0"])
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

"""Runs that continue others: all state comes along, they resume exactly, and bad ones are told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from mail_torchrec.checkpoint.manifest import checkpoint_digest, read_manifest
from mail_torchrec.checkpoint.touched import read_touched
from mail_torchrec.cli import main
from mail_torchrec.config import Config
from mail_torchrec.continuation.parent_record import read_parent
from mail_torchrec.continuation.progressive_record import read_progressive
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.train import continuation
from mail_torchrec.train.continuation import ParentRun
from mail_torchrec.train.loop import TrainingLoop
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.checkpoint.test_resume import OPTIMIZATION, configuration, log, tensors
from tests.support.small_rows import write_rows

DAYS = [f"day=2024-05-0{number}" for number in range(1, 5)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for seed, day in enumerate(DAYS):
        write_rows(folder / day / "a.parquet", 110, seed=seed)
    table = pq.read_table(folder / DAYS[1] / "a.parquet")
    items = np.where(np.arange(110) % 3 == 0, 1_000, table["item"].to_numpy())
    place = table.schema.get_field_index("item")
    pq.write_table(table.set_column(place, "item", pa.array(items)), folder / DAYS[1] / "a.parquet")
    return folder


def of_day(root: Path, number: int, **sections: dict[str, Any]) -> Config:
    """A day of 4 steps, with dropout, averages and all else that has state; tested on the last."""
    data = {"root": str(root), "train": DAYS[number], "test": DAYS[3]} | sections.pop("data", {})
    settings = OPTIMIZATION | {"epochs": 1, "log_every": 3} | sections.pop("train", {})
    checkpoint = {"every": 3} | sections.pop("checkpoint", {})
    return configuration(root, data=data, train=settings, checkpoint=checkpoint, **sections)


@pytest.fixture(scope="module")
def first(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "day1"
    train(of_day(root, 0, train={"epochs": 2}), RunDir(path))
    return path


@pytest.fixture(scope="module")
def second(root: Path, first: Path) -> Path:
    path = first.with_name("day2")
    train(of_day(root, 1), RunDir(path), parent=ParentRun(first))
    return path


def assert_same_state(one: Path, other: Path) -> None:
    found, wanted = tensors(one), tensors(other)
    assert found.keys() == wanted.keys()
    assert [key for key in found if not torch.equal(found[key], wanted[key])] == []


def test_everything_comes_along(
    root: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments, averages, batch norm, waiting gradients, random numbers, steps."""
    monkeypatch.setattr(TrainingLoop, "_run_epoch", lambda *_: None)
    settings = {"checkpoint": {"touched_rows": False}}
    train(of_day(root, 1, **settings), RunDir(tmp_path / "run"), parent=ParentRun(first))
    assert_same_state(tmp_path / "run", first)
    keys = tensors(first).keys()
    assert all(any(word in key for key in keys) for word in ("ema.", "random.", "running_var"))


@pytest.mark.parametrize(
    ("table", "sharded"), [("adagrad", True), ("sgd", True), ("adam", False)], ids=str
)
def test_the_state_of_every_optimizer_comes_along(
    table: str, sharded: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_run = {
        "train": {"tables": {"name": table, "learning_rate": 0.05}, "schedule": {}, "freeze": []},
        "sharding": {"enabled": sharded},
        "checkpoint": {"touched_rows": False, "every": 0},
    }
    train(of_day(root, 0, **of_run), RunDir(tmp_path / "day1"))
    monkeypatch.setattr(TrainingLoop, "_run_epoch", lambda *_: None)
    train(of_day(root, 1, **of_run), RunDir(tmp_path / "run"), parent=ParentRun(tmp_path / "day1"))
    assert_same_state(tmp_path / "run", tmp_path / "day1")
    of_tables = [name for name in tensors(tmp_path / "run") if "tables" in name]
    has_state = any(name.startswith("optimizer.") for name in of_tables)
    assert has_state == (table != "sgd")  # plain SGD keeps nothing


def test_steps_and_records_go_on(first: Path, second: Path) -> None:
    steps = [RunDir(path).checkpoints.published()[-1].name for path in (first, second)]
    assert steps == ["step-00000008", "step-00000012"]
    trained = [line for line in log(second) if "loss/L_rt" in line]
    assert [line["step"] for line in trained] == [9, 12]
    parent = read_parent(second)
    assert parent is not None
    assert (parent.how, parent.day, len(parent.ancestors)) == ("continue", "2024-05-02", 1)
    ancestor = parent.parent
    assert (ancestor.run, ancestor.day, ancestor.step) == (str(first), "2024-05-01", 8)
    folder = RunDir(first).checkpoints.target(8)
    assert ancestor.checkpoint == checkpoint_digest(folder)
    assert ancestor.rows == read_manifest(folder).num_rows == 110
    listed = (second / "SHA256SUMS").read_text()
    assert "parent.json" in listed and "progressive.json" in listed


def test_no_row_that_a_continued_run_changed_is_missing_among_the_touched_ones(
    first: Path, second: Path
) -> None:
    before, after = tensors(first), tensors(second)
    touched = read_touched(RunDir(second).checkpoints.published()[-1])
    for table, flags in touched.items():
        changed = np.zeros(len(flags), np.bool_)
        for key in [key for key in after if f".{table}." in key and after[key].dim()]:
            changed |= (after[key] != before[key]).reshape(len(flags), -1).any(dim=1).numpy()
        assert not (changed & ~flags).any() and not flags.all(), table
        assert changed.any() == flags.any(), table  # of a frozen table there are none


def test_the_parent_scores_the_new_rows_before_it_is_trained_on_them(
    root: Path, first: Path, second: Path
) -> None:
    """The same figures as `evaluate` of the parent on these files, which knows nothing of days."""
    record = read_progressive(second)
    assert record is not None
    expected = evaluate_run(RunDir(first), str(root / DAYS[1]), [])
    names = {"all": "all", "new": "new_users", "old": "old_users"}
    assert {names[name]: found for name, found in expected.items()} == {
        name: found for name, found in record.metrics.items() if name in names.values()
    }
    new, old = record.metrics["new_items"], record.metrics["old_items"]
    assert (new["rows"], old["rows"], record.rows) == (37, 73, 110)  # every third row
    assert record.by_day == {"2024-05-02": record.metrics}
    assert (record.parent_step, record.day, record.item) == (8, "2024-05-02", "item")
    told = [line["progressive"] for line in log(second) if "progressive" in line]
    assert told == [record.metrics]


def test_several_days_are_measured_one_by_one(root: Path, first: Path, tmp_path: Path) -> None:
    several = of_day(root, 1, data={"train": DAYS[1:3]}, train={"epochs": 1})
    train(several, RunDir(tmp_path / "run"), parent=ParentRun(first))
    record = read_progressive(tmp_path / "run")
    assert record is not None and list(record.by_day) == ["2024-05-02", "2024-05-03"]
    assert record.day == "2024-05-03"
    for day, found in record.by_day.items():
        expected = evaluate_run(RunDir(first), str(root / f"day={day}"), [])
        assert found["all"] == pytest.approx(expected["all"])
        assert sum(found[name]["rows"] for name in ("new_items", "old_items")) == 110


class KilledError(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def _killed(*_: Any) -> None:
    raise KilledError


@pytest.mark.parametrize("place", ["reset_rows", "update_encoders", "score_new_rows"])
def test_a_run_killed_before_its_first_step_begins_again_with_its_parent(
    place: str, root: Path, first: Path, second: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    run = RunDir(tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(continuation, place, lambda *_, **__: _killed())
        train(of_day(root, 1), run, parent=ParentRun(first))
    train(of_day(root, 1), run, resume=True)  # it knows its parent
    assert_same_state(run.path, second)
    assert read_progressive(run.path) is not None


def test_a_resumed_run_needs_its_parent_no_more(
    root: Path, first: Path, second: Path, tmp_path: Path
) -> None:
    shutil.copytree(first, tmp_path / "day1")
    run, killed = RunDir(tmp_path / "run"), KilledError()
    saved = TrainingLoop._after_step

    def kill_after_step_11(loop: TrainingLoop, *args: Any) -> None:
        saved(loop, *args)
        if loop.writer.num_done == 11:
            loop.saver.finish()
            raise killed

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(TrainingLoop, "_after_step", kill_after_step_11)
        train(of_day(root, 1), run, parent=ParentRun(tmp_path / "day1"))
    shutil.rmtree(tmp_path / "day1")
    train(of_day(root, 1), run, resume=True, parent=ParentRun(tmp_path / "day1"))
    assert_same_state(run.path, second)
    record = read_progressive(run.path)
    assert record is not None and record.metrics == read_progressive(second).metrics


def test_the_commands_take_the_parents_configuration(root: Path, first: Path) -> None:
    out, again = first.with_name("cli"), first.with_name("again")
    call = ["train", "--run-dir", str(out), "--continue", str(first), "train.epochs=1"]
    done = CliRunner().invoke(main, [*call, f"data.train={DAYS[2]}"])
    assert done.exit_code == 0, done.output
    assert "the parent on new data, all, 110 rows: auc" in done.output
    chained = ["train", "--run-dir", str(again), "--continue", str(out), f"data.train={DAYS[0]}"]
    refused = CliRunner().invoke(main, chained)
    assert refused.exit_code == 1 and f"trained on before: 'a.parquet' by '{first}'" in str(
        refused.output
    )
    assert not (again / "parent.json").exists()
    allowed = CliRunner().invoke(main, [*chained, "--again"])
    assert allowed.exit_code == 0 and "trained on AGAIN (--again)" in allowed.output
    parent = read_parent(again)
    assert parent is not None and [one.step for one in parent.ancestors] == [8, 12]


REFUSED: dict[str, tuple[Callable[[Config], dict[str, Any]], str]] = {
    "tower": (lambda _: {"model": {"tower": "base_dnn", "tower_options": {}}}, "model.tower: dmr"),
    "optimizer": (lambda _: {"train": {"tables": {"name": "adam"}}}, "train.tables.name"),
    "rows": (
        lambda config: {
            "schema": config.model_dump(mode="json", by_alias=True)["schema"]
            | {"tables": {"item": {"rows": 20}}}
        },
        "schema.tables.item.rows: None there, 20 now",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_may_not_change_is_refused_with_every_difference(
    kind: str, root: Path, first: Path, tmp_path: Path
) -> None:
    change, told = REFUSED[kind]
    wanted = of_day(root, 1, **change(of_day(root, 1)))
    with pytest.raises(ValueError, match="may change its data and how it learns") as error:
        train(wanted, RunDir(tmp_path / "run"), parent=ParentRun(first))
    assert told in str(error.value)
    assert ("A table keeps its rows" in str(error.value)) == (kind == "rows")


def test_what_may_change_is_taken(root: Path, first: Path, tmp_path: Path) -> None:
    changed = {
        "epochs": 1,
        "batch_size": 64,
        "freeze": ["zero_shot", "tables.item"],
        "learning_rate": 0.01,
        "tables": OPTIMIZATION["tables"] | {"learning_rate": 0.2},
    }
    config = of_day(root, 1, train=changed, metrics={"by": ["hour"]})
    train(config, RunDir(tmp_path / "run"), parent=ParentRun(first))
    now, before = tensors(tmp_path / "run"), tensors(first)
    frozen = [key for key in now if key.startswith("model.towers.zero_shot") or "s.item" in key]
    assert frozen and all(torch.equal(now[key], before[key]) for key in frozen)
    moved = [key for key in now if key.startswith("model.") and ".city" in key]
    assert moved and not any(torch.equal(now[key], before[key]) for key in moved)


def test_other_parents_and_types_are_refused(
    root: Path, first: Path, second: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="is the run directory itself"):
        train(of_day(root, 1), RunDir(first), resume=True, parent=ParentRun(first))
    with pytest.raises(ValueError, match=rf"was begun with --continue {first}, received --contin"):
        train(of_day(root, 1), RunDir(second), resume=True, parent=ParentRun(tmp_path))
    with pytest.raises(ValueError, match="was begun without a parent, received --continue"):
        train(of_day(root, 0), RunDir(first), resume=True, parent=ParentRun(second))
    with pytest.raises(ValueError, match="should be the directory of a trained run"):
        train(of_day(root, 1), RunDir(tmp_path / "run"), parent=ParentRun(tmp_path))
    table = pq.read_table(root / DAYS[1] / "a.parquet")
    place = table.schema.get_field_index("item")
    texts = table.set_column(place, "item", table["item"].cast(pa.string()))
    (tmp_path / DAYS[1]).mkdir()
    history = texts["history"].cast(pa.list_(pa.string()))
    texts = texts.set_column(texts.schema.get_field_index("history"), "history", history)
    pq.write_table(texts, tmp_path / DAYS[1] / "a.parquet")
    config = of_day(tmp_path, 1, data={"root": str(tmp_path), "test": DAYS[1]})
    with pytest.raises(ValueError, match="column 'item': integer in the parent's data"):
        train(config, RunDir(tmp_path / "other"), parent=ParentRun(first))


def test_a_parent_that_is_gone_before_the_first_checkpoint_is_told(
    root: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(first, tmp_path / "day1")
    run = RunDir(tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(continuation, "reset_rows", _killed)
        train(of_day(root, 1), run, parent=ParentRun(tmp_path / "day1"))
    checkpoints = RunDir(tmp_path / "day1").checkpoints
    checkpoints.target(8).rename(checkpoints.target(9))
    with pytest.raises(ValueError, match=r"begun from step 8 of .* is gone.*--from-scratch"):
        train(of_day(root, 1), run, resume=True)
    shutil.copytree(first / "checkpoints/step-00000006", checkpoints.target(8))
    with pytest.raises(ValueError, match="step-00000008' is another checkpoint now"):
        train(of_day(root, 1), run, resume=True)
    (tmp_path / "run" / "parent.json").write_text(json.dumps({"how": "continue"}))
    with pytest.raises(ValueError, match=r"parent.json' is damaged: .*bring it back"):
        train(of_day(root, 1), run, resume=True)


def test_weights_alone_are_taken_by_ids_where_a_run_begins_from_another(
    root: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model with one tower more and other ids; the rest is as in a run of its own."""
    monkeypatch.setattr(TrainingLoop, "_run_epoch", lambda *_: None)
    plain = {"train": {"ema": None, "freeze": [], "accumulate": 1, "epochs": 2}}
    config = of_day(root, 1, **plain)
    train(config, RunDir(tmp_path / "own"))
    train(config, RunDir(tmp_path / "run"), parent=ParentRun(first, "init-from"))
    now, own, before = (tensors(path) for path in (tmp_path / "run", tmp_path / "own", first))
    towers = [key for key in own if key.startswith("model.towers")]
    averaged = {key: before.get(key.replace("model.", "ema.", 1), before[key]) for key in towers}
    assert all(torch.equal(now[key], averaged[key]) for key in towers)
    optimizers = [key for key in own if key.startswith(("optimizer.", "random."))]
    assert optimizers and all(torch.equal(now[key], own[key]) for key in optimizers)
    values = [
        pq.read_table(path / "vocabularies/item.parquet")["value"].to_pylist()
        for path in (tmp_path / "run", first)
    ]
    key = "model.unpooled_tables.embeddings.item.weight"
    for row, value in enumerate(values[0], start=2):
        same = before[key][values[1].index(value) + 2] if value in values[1] else own[key][row]
        assert torch.equal(now[key][row], same)
    assert 1_000 in values[0] and 1_000 not in values[1]
    assert RunDir(tmp_path / "run").checkpoints.published()[-1].name == "step-00000000"
    told = [line["init_from"] for line in log(tmp_path / "run") if "init_from" in line]
    assert told[0]["left"] == [] and "tower 'ranking'" in str(told[0]["taken"])


def test_what_does_not_fit_is_left_and_told(
    root: Path, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tower = {"tower_options": {"num_negatives": 20, "hidden_dims": [12, 8], "match_weight": 0.5}}
    model = of_day(root, 1).model_dump(mode="json")["model"] | tower
    schema = of_day(root, 1).model_dump(mode="json", by_alias=True)["schema"]
    tables = schema["tables"] | {"city": {"ids": "hash", "rows": 50}}
    sections = {"model": model, "schema": schema | {"tables": tables}, "train": {"epochs": 2}}
    config = of_day(root, 1, **sections)
    train(config, RunDir(tmp_path / "run"), parent=ParentRun(first, "init-from"))
    [told] = [line["init_from"] for line in log(tmp_path / "run") if "init_from" in line]
    assert told["left"][0] == "table 'city' encodes its ids in another way there"
    assert told["left"][1].startswith("tower 'ranking': towers.ranking.")
    assert "has the size (16,) there, (12,) here and" in told["left"][
        1
    ] and "tower 'zero_shot'" in str(told["taken"])
    assert "and begun at random" in capsys.readouterr().err

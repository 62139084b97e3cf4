"""A resumed run ends as one that never stopped; other runs are refused with the reason."""

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from mail_torchrec.checkpoint.storage import read_tensor_metadata, read_tensors
from mail_torchrec.cli import main
from mail_torchrec.config import Config
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.records.checksums import (
    CHECKSUMS,
    read_checksums,
    sha256_of_files,
    write_checksums,
)
from mail_torchrec.records.run_record import begin_record
from mail_torchrec.train.metrics_writer import MetricsWriter
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.utils.formats import RUN_FORMAT
from tests.support.hostile import CANARY, live_pickles
from tests.support.sequence_rows import with_parts
from tests.support.small_rows import baseline_tree, config_tree
from tests.support.task_rows import MMOE, TASK_SCHEMA, TASKS, add_task_labels
from tests.support.weighted_rows import WEIGHTED, write_weighted_rows


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_weighted_rows(folder / "train" / "a.parquet", 160, seed=1)
    write_weighted_rows(folder / "train" / "b.parquet", 90, seed=2)
    write_weighted_rows(folder / "test" / "c.parquet", 120, seed=3)
    for seed, path in enumerate(sorted(folder.rglob("*.parquet"))):
        add_task_labels(path, seed)
    return folder


def configuration(root: Path, **sections: dict[str, Any]) -> Config:
    """Two epochs of 8 steps with dropout (random numbers), and a checkpoint every 5 steps."""
    model = config_tree(root)["model"]
    model |= {"zero_shot": model["zero_shot"] | {"dropout": 0.5}, "behaviour_dropout": 0.3}
    given = {"model": model, "train": {}, "checkpoint": {}} | sections
    train_settings = {"epochs": 2, "log_every": 3} | given.pop("train")
    return Config.model_validate(
        config_tree(
            root,
            train=train_settings,
            checkpoint={"every": 5, "keep": 9} | given.pop("checkpoint"),
            **given,
        )
    )


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint."""
    folder = RunDir(run_dir).checkpoints.published()[-1]
    state = {
        key: torch.empty(item.size, dtype=item.properties.dtype)
        for key, item in read_tensor_metadata(folder).items()
    }
    read_tensors(state, folder)
    return state


def log(run_dir: Path) -> list[dict[str, Any]]:
    """What was recorded, but for the time and the memory that it took."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            key: value
            for key, value in line.items()
            if key not in ("rows_per_second", "input_wait", "usage", "step_time")
        }
        for line in lines
    ]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Weights, buffers, optimizer state, random state, records, metrics: to the bit."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert any(key.endswith("exp_avg_sq") for key in first) and any(
        key.endswith("running_var") for key in first
    )
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert log(one) == log(other)
    assert json.loads((one / "metrics.json").read_text()) == json.loads(
        (other / "metrics.json").read_text()
    )


def as_killed(finished: Path, copy: Path, step: int) -> Path:
    """Copies a run as if it had been killed some steps behind the checkpoint of ``step``."""
    shutil.copytree(finished, copy)
    (copy / "metrics.json").unlink()
    begin_record(copy, ["config.yaml", "plan.json", "vocabularies"])
    for path in RunDir(copy).checkpoints.published():
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    (copy / "checkpoints" / f".step-{step + 5:08d}.partial").mkdir()
    return copy


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(configuration(root), RunDir(path))
    return path


@pytest.mark.parametrize("step", [5, 10, 16])
def test_a_resumed_run_ends_as_one_that_never_stopped(
    root: Path, finished: Path, tmp_path: Path, step: int
) -> None:
    killed = as_killed(finished, tmp_path / "run", step)
    train(configuration(root), RunDir(killed), resume=True)
    assert_equal_runs(finished, killed)
    assert not list((killed / "checkpoints").glob(".*"))


OPTIMIZATION: dict[str, Any] = {
    "schedule": {"name": "cosine", "warmup_steps": 7},
    "weight_decay": 0.1,
    "clip_norm": 0.05,
    "accumulate": 3,
    "ema": {"decay": 0.7},
    "freeze": ["tables.age"],
    "tables": {
        "learning_rate": 0.1,
        "max_gradient": 0.01,
        "schedule": {"name": "step", "every": 4, "gamma": 0.5, "warmup_steps": 6},
    },
}
"""All at once: step 5 is within the warm-up, and the second of three that are accumulated."""
VARIANTS: dict[str, dict[str, Any]] = {
    "optimization": {
        "train": OPTIMIZATION,
        "schema": TASK_SCHEMA,
        "model": config_tree(Path())["model"] | {"tasks": TASKS, "experts": MMOE},
    },
    "workers": {"data": {"num_workers": 2}, "train": {"epochs": 1}, "schema": WEIGHTED},
    "unsharded_adam": {
        "sharding": {"enabled": False},
        "train": {"epochs": 1, "tables": {"name": "adam"}},
    },
    "rowwise_adagrad": {"train": {"epochs": 1, "tables": {"name": "rowwise_adagrad"}}},
    "sync": {"checkpoint": {"mode": "sync"}, "schema": with_parts("sum"), "train": {"epochs": 1}},
    "llae": baseline_tree("llae", solve_every=3),
    "cvar": baseline_tree("cvar") | {"train": {"epochs": 1}},
    "meta_emb": baseline_tree("meta_emb")
    | {"data": {"group_by_user": True}, "train": {"epochs": 1}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_so_does_every_kind_of_run(root: Path, tmp_path: Path, variant: str) -> None:
    sections = VARIANTS[variant]
    config = configuration(
        root, **sections | {"data": {"root": str(root)} | sections.get("data", {})}
    )
    train(config, RunDir(tmp_path / "straight"))
    killed = as_killed(tmp_path / "straight", tmp_path / "killed", 5)
    train(config, RunDir(killed), resume=True)
    assert_equal_runs(tmp_path / "straight", killed)


def at_steps(actions: dict[int, Callable[[], object]]) -> Callable[..., None]:
    """``Progress.step``, and something else at some steps."""

    def patched(progress: MetricsWriter, *arguments: Any) -> None:
        original(progress, *arguments)
        actions.get(progress.num_done, lambda: None)()

    original = MetricsWriter.record_step
    return patched


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_exits_and_the_run_goes_on(
    number: signal.Signals,
    root: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.signal(number, signal.default_int_handler)  # the tests may be in background
    with monkeypatch.context() as patch:
        patch.setattr(
            MetricsWriter, "record_step", at_steps({7: lambda: os.kill(os.getpid(), number)})
        )
        with pytest.raises(SystemExit) as stopped:
            train(configuration(root, checkpoint={"every": 0}), RunDir(tmp_path / "run"))
    assert stopped.value.code == 128 + number
    assert (
        "told to stop: saved after step 7; --resume goes on from there" in capsys.readouterr().err
    )
    assert signal.signal(number, before) is signal.default_int_handler
    assert [path.name for path in RunDir(tmp_path / "run").checkpoints.published()] == [
        "step-00000007"
    ]
    train(configuration(root), RunDir(tmp_path / "run"), resume=True)
    assert_equal_runs(finished, tmp_path / "run")


def test_a_finished_run_gives_its_metrics_and_more_epochs_train_on(
    root: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    metrics = train(configuration(root), RunDir(tmp_path / "run"), resume=True)
    assert metrics == json.loads((finished / "metrics.json").read_text())
    assert f"the run in '{tmp_path / 'run'}' is finished, with 2 epochs" in capsys.readouterr().err
    train(configuration(root, train={"epochs": 3}), RunDir(tmp_path / "run"), resume=True)
    train(configuration(root, train={"epochs": 3}), RunDir(tmp_path / "straight"))
    more, straight = tensors(tmp_path / "run"), tensors(tmp_path / "straight")
    assert all(torch.equal(more[key], straight[key]) for key in straight)


FINISHED_WITH: dict[str, tuple[dict[str, Any], str]] = {
    "test data": ({"data": {"test": "train"}}, r"test data '.*train': .*\(250 rows, 120 then\)"),
    "training data": ({"data": {"train": "test"}}, r"training data '.*\(120 rows, 250 then\)"),
    "cold start": (
        {"data": {"cold_start": {"hide_share": 0.5}}},
        r"data\.cold_start\.hide_share: 0\.0 there, 0\.5 now",
    ),
    "rule for new users": (
        {"data": {"new_user_max_behaviours": 2}},
        r"data\.new_user_max_behaviours: 0 there, 2 now",
    ),
    "seed": ({"train": {"seed": 9}}, r"train\.seed: 1 there, 9 now"),
    "batch size": ({"train": {"batch_size": 16}}, r"train\.batch_size: 32 there, 16 now"),
    "fewer epochs": ({"train": {"epochs": 1}}, r"train\.epochs: 2 there, 1 now"),
    "metrics": ({"metrics": {"by": ["hour"]}}, r"metrics\.by: .* there, .* now"),
    "schema": ({"schema": {"dim": 12}}, r"schema\.dim: 8 there, 12 now"),
    "predictions": (
        {"train": {"save_predictions": True}},
        r"without predictions; leave train\.save_predictions out, .*evaluate --predictions",
    ),
    "more epochs on other data": (
        {"train": {"epochs": 3}, "data": {"train": "test"}},
        r"is not the training data of .*\(120 rows, 250 then\)",
    ),
}


@pytest.mark.parametrize("change", FINISHED_WITH)
def test_a_finished_run_of_other_settings_or_data_is_refused_and_keeps_its_metrics(
    root: Path, finished: Path, tmp_path: Path, change: str
) -> None:
    sections, message = FINISHED_WITH[change]
    base = {name: config_tree(root).get(name, {}) for name in ("data", "schema", "metrics")}
    base |= {"train": {}}
    config = configuration(
        root, **{name: base[name] | section for name, section in sections.items()}
    )
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        train(config, RunDir(tmp_path / "run"), resume=True)
    assert_equal_runs(finished, tmp_path / "run")


def test_a_finished_run_answers_for_its_data_anywhere_and_for_other_workers(
    root: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(root, tmp_path / "rows")
    config = configuration(
        tmp_path / "rows",
        data={"root": str(tmp_path / "rows"), "num_workers": 2},
        train={"eval_batch_size": 7, "log_every": 1},
    )
    metrics = train(config, RunDir(tmp_path / "run"), resume=True)
    assert metrics == json.loads((finished / "metrics.json").read_text())


@pytest.mark.parametrize("column", ["clicked", "user", "item"])
def test_rows_that_were_exchanged_behind_one_path_are_noticed(
    root: Path, finished: Path, tmp_path: Path, column: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(root, tmp_path / "rows")
    path = tmp_path / "rows" / "test" / "c.parquet"
    table = pq.read_table(path)
    values = pc.subtract(1, table[column]) if column == "clicked" else pc.add(table[column], 1)
    table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table, path, row_group_size=50)
    config = configuration(tmp_path / "rows", data={"root": str(tmp_path / "rows")})
    with pytest.raises(ValueError, match=r"had other data; bring that data back, (.|\n)*test data"):
        train(config, RunDir(tmp_path / "run"), resume=True)


def test_fewer_epochs_than_were_begun_are_refused(
    root: Path, finished: Path, tmp_path: Path
) -> None:
    killed = as_killed(finished, tmp_path / "run", 10)
    with pytest.raises(
        ValueError, match=r"step-00000010' has begun epoch 2; train\.epochs should be at least 2"
    ):
        train(configuration(root, train={"epochs": 1}), RunDir(killed), resume=True)


def limit_files(num_bytes: int) -> None:
    """Makes the system refuse longer files, as on a full disk; -1 allows all again."""
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (num_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    )


@pytest.fixture
def full_disk() -> Iterator[None]:
    limit_files(100_000)
    yield
    limit_files(-1)


def test_a_checkpoint_that_cannot_be_written_is_told_and_those_before_stay(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        MetricsWriter,
        "record_step",
        at_steps({6: lambda: limit_files(100_000), 12: lambda: limit_files(-1)}),
    )
    train(configuration(root, checkpoint={"mode": "sync"}), RunDir(tmp_path / "run"))
    told = capsys.readouterr().err
    assert "WARNING: the checkpoint of step 10 could not be written below" in told
    assert "MiB free there); 'step-00000005' remains the newest" in told
    assert [path.name for path in RunDir(tmp_path / "run").checkpoints.published()] == [
        "step-00000005",
        "step-00000015",
        "step-00000016",
    ]
    [failed] = [line for line in log(tmp_path / "run") if "checkpoint_failed" in line]
    assert failed["checkpoint_failed"] in told
    assert not list((tmp_path / "run/checkpoints").glob(".*"))


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_where_asked_the_run_stops_at_once(root: Path, tmp_path: Path, mode: str) -> None:
    run_dir = RunDir(tmp_path / "run")
    config = configuration(root, checkpoint={"mode": mode, "on_failure": "stop"})
    with pytest.raises(
        OSError, match=r"the checkpoint of step 5 could not be written below .*there is none yet"
    ):
        train(config, run_dir)
    assert not run_dir.checkpoints.published() and not run_dir.metrics.exists()


@pytest.mark.usefixtures("full_disk")
def test_the_last_checkpoint_must_be_written(root: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the checkpoint of step 16 could not be written"):
        train(configuration(root, checkpoint={"every": 0}), RunDir(tmp_path / "run"))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    root: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = as_killed(finished, tmp_path / "run", 10)
    damage(killed / "checkpoints/step-00000010/__0_0.distcp")
    evaluate_run(RunDir(killed), None, [])
    told = capsys.readouterr().err
    assert (
        f"WARNING: '{killed / 'checkpoints/step-00000010'}' is damaged, the one before it is used"
        in told
    )
    assert f"{killed / 'checkpoints/step-00000010/__0_0.distcp'} should have the SHA-256 " in told
    train(configuration(root), RunDir(killed), resume=True)
    assert_equal_runs(finished, killed)
    assert (killed / "checkpoints/step-00000010.damaged").exists()
    command = ["checkpoint", "verify", str(killed)]
    assert CliRunner().invoke(main, command).exit_code == 0
    damage(killed / "checkpoints/step-00000015/manifest.json")
    found = CliRunner().invoke(main, command)
    assert (
        found.exit_code == 1
        and "step-00000015/manifest.json should have the SHA-256 " in found.output
    )


def test_a_pickle_in_a_checkpoint_is_loaded_by_no_command(
    root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = as_killed(finished, tmp_path / "run", 10)
    monkeypatch.chdir(tmp_path)
    for folder in RunDir(killed).checkpoints.published():
        (folder / ".metadata").write_bytes(live_pickles()[0])
        names = [path.name for path in folder.iterdir() if path.name != CHECKSUMS]
        write_checksums(folder, sha256_of_files(folder, names))
    for command in ("list", "show", "verify"):
        result = CliRunner().invoke(main, ["checkpoint", command, str(killed)])
        assert result.exit_code == 0, result.output
    evaluate_run(RunDir(killed), None, [])
    train(configuration(root), RunDir(killed), resume=True)
    assert_equal_runs(finished, killed)

    def converted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("by now all of the checkpoint is read")

    monkeypatch.setattr("mail_torchrec.export.command._write_models", converted)
    with pytest.raises(KeyboardInterrupt, match="all of the checkpoint is read"):
        export(ExportOptions(RunDir(killed), tmp_path / "model"))
    assert not Path(CANARY).exists()


def test_a_changed_vocabulary_is_refused_by_evaluation_and_export(
    finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    damage(run / "vocabularies/scales.json")
    for read in (
        lambda: evaluate_run(RunDir(run), None, []),
        lambda: export(ExportOptions(RunDir(run), tmp_path / "model")),
    ):
        with pytest.raises(ValueError, match=r"was trained with: scales.json changed"):
            read()


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, but for what says when a run was opened."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "run.json")
    }


def test_when_all_are_damaged_the_run_is_refused_again_and_again_and_nothing_changes(
    root: Path, finished: Path, tmp_path: Path
) -> None:
    killed = as_killed(finished, tmp_path / "run", 10)
    shutil.rmtree(killed / "checkpoints" / ".step-00000015.partial")
    damage(killed / "checkpoints/step-00000005/.metadata")
    (killed / "checkpoints/step-00000010/SHA256SUMS").unlink()
    before = files_of(killed)
    for _ in range(3):
        with pytest.raises(
            ValueError,
            match=(
                r"every checkpoint below .* is damaged, and none was changed; bring one back from "
                r"a copy, or train anew with --from-scratch(.|\n)*SHA256SUMS(.|\n)*metadata"
            ),
        ):
            train(configuration(root), RunDir(killed), resume=True)
        assert files_of(killed) == before


LOSSES: dict[str, Callable[[Path], object]] = {
    "they were deleted": lambda run: [
        shutil.rmtree(path) for path in (run / "checkpoints").iterdir()
    ],
    "their folder was deleted": lambda run: shutil.rmtree(run / "checkpoints"),
    "they were set aside": lambda run: [
        path.rename(f"{path}.damaged") for path in (run / "checkpoints").glob("step-*")
    ],
    "they were, and nothing else tells": lambda run: [
        *(path.rename(f"{path}.damaged") for path in (run / "checkpoints").glob("step-*")),
        (run / "data.json").unlink(),
        (run / "run.json").write_text(json.dumps({"format": RUN_FORMAT, "version": "0"})),
    ],
}


@pytest.mark.parametrize(
    "loss",
    [
        "they were deleted",
        "they were, and nothing else tells",
        pytest.param("their folder was deleted", marks=pytest.mark.long),
        pytest.param("they were set aside", marks=pytest.mark.long),
    ],
)
def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew_by_itself(
    root: Path, finished: Path, tmp_path: Path, loss: str
) -> None:
    killed = as_killed(finished, tmp_path / "run", 10)
    LOSSES[loss](killed)
    records = (killed / "metrics.jsonl").read_bytes()
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"has no checkpoint left to resume from, and had one \("
        ):
            train(configuration(root), RunDir(killed), resume=True)
    with pytest.raises(ValueError, match=r"already holds a run \(unfinished\); add --resume"):
        train(configuration(root), RunDir(killed))
    assert (killed / "metrics.jsonl").read_bytes() == records
    train(configuration(root), RunDir(killed), from_scratch=True)
    assert_equal_runs(finished, killed)
    assert (killed / "earlier-1/metrics.jsonl").read_bytes() == records
    if loss == "they were deleted":  # once is enough for what comes after
        train(configuration(root), RunDir(killed), from_scratch=True)
        assert_equal_runs(killed, killed / "earlier-2")


def test_a_run_without_a_checkpoint_begins_anew_and_says_so(
    root: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def killed_at_step_4() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "record_step", at_steps({4: killed_at_step_4}))
        with pytest.raises(KeyboardInterrupt):
            train(configuration(root), RunDir(tmp_path / "run"))
    train(configuration(root), RunDir(tmp_path / "run"), resume=True)
    assert "stopped before its first checkpoint, and begins at step 0" in capsys.readouterr().err
    assert_equal_runs(finished, tmp_path / "run")


UNREADABLE = [
    ("SHA256SUMS", errno.EACCES),
    ("SHA256SUMS", errno.ENOENT),
    ("__0_0.distcp", errno.EIO),
    ("__0_0.distcp", errno.ENOENT),
    ("tensors.json", errno.ESTALE),
]


def test_a_checkpoint_that_cannot_be_read_is_not_damaged(
    root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = as_killed(finished, tmp_path / "run", 10)
    shutil.rmtree(killed / "checkpoints" / ".step-00000015.partial")
    before, really_open = files_of(killed), os.open
    for name, error in UNREADABLE:
        unreadable = killed / "checkpoints/step-00000010" / name
        assert unreadable.exists()

        def open_file(
            path: Any,
            *arguments: Any,
            refused: Path = unreadable,
            error: int = error,
            **options: Any,
        ) -> int:
            if os.fspath(path) == str(refused):
                raise OSError(error, os.strerror(error), str(path))
            return really_open(path, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", open_file)
            for action in (
                lambda: train(configuration(root), RunDir(killed), resume=True),
                lambda: evaluate_run(RunDir(killed), None, []),
            ):
                with pytest.raises(
                    OSError,
                    match=r"step-00000010' cannot be read, which does not say that it is dam",
                ):
                    action()
        assert files_of(killed) == before, (name, error)
    train(configuration(root), RunDir(killed), resume=True)
    assert_equal_runs(finished, killed)


def test_an_old_checkpoint_may_be_a_link(root: Path, finished: Path, tmp_path: Path) -> None:
    """It is unlinked when its time has come, and what it leads to stays."""
    killed = as_killed(finished, tmp_path / "run", 10)
    old = killed / "checkpoints/step-00000005"
    shutil.move(old, tmp_path / "archive")
    old.symlink_to(tmp_path / "archive")
    (killed / "checkpoints/.step-00000003.deleted").symlink_to(tmp_path / "archive")
    (killed / "checkpoints/step-00000002").symlink_to(tmp_path / "nowhere")
    train(configuration(root, checkpoint={"keep": 2}), RunDir(killed), resume=True)
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == [
        "step-00000015",
        "step-00000016",
    ]
    assert len(list((tmp_path / "archive").iterdir())) > 3
    newest = killed / "checkpoints/step-00000016"
    shutil.rmtree(newest)
    newest.symlink_to(tmp_path / "not-mounted")
    with pytest.raises(OSError, match=r"step-00000016' cannot be read, which does not say"):
        evaluate_run(RunDir(killed), None, [])


def with_manifest(run: Path, **changes: Any) -> Path:
    """Changes the manifest of the newest checkpoint, and its checksum with it."""
    folder = RunDir(run).checkpoints.published()[-1]
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, value in changes.items():
        node, *keys = manifest, *name.split("__")
        for key in keys[:-1]:
            node = node[int(key) if key.isdigit() else key]
        node[keys[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    checksums = read_checksums(folder)
    write_checksums(folder, checksums | sha256_of_files(folder, ["manifest.json"]))
    return folder


NONSENSE: dict[str, dict[str, Any]] = {
    "no ranks": {"ranks": []},
    "an epoch of a million": {"position__epoch": 10**6},
    "an epoch without end": {"position__epoch": 10**400},
    "negative steps": {"step": -1},
    "a huge step": {"step": 10**30},
    "more steps than there are": {"position__consumed__0__steps": 10**6},
    "negative steps of an epoch": {"position__consumed__0__steps": -3},
    "a million ranks": {"position__consumed__0__layout__ranks": 10**6},
    "no workers": {"position__consumed__0__layout__workers": 0},
    "a huge log": {"progress__log_bytes": 10**30},
    "other counts": {"ranks__0__counts": [1]},
    "huge counts": {"ranks__0__counts": [10**30]},
    "losses without end": {"ranks__0__losses": {"L_rt": float("inf")}},
    "files that are no files": {"data": [["a"]]},
}


@pytest.mark.parametrize("change", NONSENSE)
def test_numbers_that_make_no_sense_are_refused_in_one_line(
    root: Path, finished: Path, tmp_path: Path, change: str
) -> None:
    killed = as_killed(finished, tmp_path / "run", 10)
    folder = with_manifest(killed, **NONSENSE[change])
    with pytest.raises(ValueError, match="") as refused:
        train(configuration(root), RunDir(killed), resume=True)
    assert "\n" not in str(refused.value) and folder.exists()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "schema": (
        {"schema": {"dim": 12}},
        r"another configuration; resume with the same.*\n  schema.dim: 8 there, 12 now$",
    ),
    "optimizer": (
        {"train": {"tables": {"name": "sgd"}, "seed": 9}},
        r"train.tables.name: adagrad there, sgd now\n  train.seed: 1 there, 9 now",
    ),
    "data": (
        {"data": {"train": "test"}},
        r"test' is not the training data of .* \(120 rows, 250 then\); bring that data back",
    ),
}


@pytest.mark.parametrize("change", REFUSED)
def test_another_run_is_refused_with_the_difference(
    root: Path, finished: Path, tmp_path: Path, change: str
) -> None:
    sections, message = REFUSED[change]
    config = configuration(
        root,
        **{
            name: config_tree(root)[name] | section
            for name, section in sections.items()
            if name != "train"
        }
        | {name: section for name, section in sections.items() if name == "train"},
    )
    killed = as_killed(finished, tmp_path / "run", 10)
    with pytest.raises(ValueError, match=message):
        train(config, RunDir(killed), resume=True)


def test_other_vocabularies_are_refused(root: Path, finished: Path, tmp_path: Path) -> None:
    killed = as_killed(finished, tmp_path / "run", 10)
    shutil.copy(killed / "vocabularies/age.parquet", killed / "vocabularies/hour.parquet")
    with pytest.raises(
        ValueError,
        match=r"vocabularies' is not what .*step-00000010' was trained with: hour.parquet changed",
    ):
        train(configuration(root), RunDir(killed), resume=True)


def test_what_may_change_may_change(root: Path, finished: Path, tmp_path: Path) -> None:
    """Another batch size: what is left of the epoch is partitioned anew."""
    killed = as_killed(finished, tmp_path / "run", 5)
    config = configuration(
        root,
        train={"batch_size": 20, "log_every": 4},
        sharding={"sharding_types": ["row_wise"]},
        checkpoint={"keep": 1},
    )
    metrics = train(config, RunDir(killed), resume=True)
    # 8 steps of 31 or 32 rows: 156 are done after 5, and 94 are left for 5 steps of at most 20;
    # then 250 to 13.
    assert [path.name for path in RunDir(killed).checkpoints.published()] == ["step-00000023"]
    assert metrics["all"]["rows"] == 120
    counts = [
        [line["counts"]["cut/history"] for line in log(run) if "epoch" in line]
        for run in (finished, killed)
    ]
    assert counts[0] == counts[1], "each row of an epoch was met once"


def test_the_command_line_lists_and_shows_checkpoints_without_torchrec(
    finished: Path, tmp_path: Path
) -> None:
    killed = as_killed(finished, tmp_path / "run", 10)
    (killed / "checkpoints/step-00000005/plan.json").unlink()
    lines = CliRunner().invoke(main, ["checkpoint", "list", str(killed)]).output.splitlines()
    assert [line.split()[0] for line in lines] == [
        "checkpoint",
        "step-00000005",
        "step-00000010",
        ".step-00000015.partial",
    ]
    assert "epoch 1, 5 steps of it done" in lines[1] and "epoch 2, 2 steps of it done" in lines[2]
    assert lines[1].endswith("damaged: plan.json missing") and lines[2].endswith("published")
    assert lines[3].endswith("being written, or left by a killed run")
    shown = CliRunner().invoke(main, ["checkpoint", "show", str(killed)]).output
    assert "run 'small': step 10, epoch 2, 2 steps of it done, 1 ranks" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("item ")] == [
        ["item", "1,024", "8", "float32", "1", "32.0", "KiB", "item.momentum1", "32.0", "KiB"]
    ]
    empty = CliRunner().invoke(main, ["checkpoint", "list", str(tmp_path)])
    assert (
        empty.exit_code == 1 and "should be the directory of a run or a checkpoint" in empty.output
    )

"""Jobs side by side: kept, repeated, refused. A shell script stands in for the training."""

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from mail_torchrec.checkpoint.data_record import DataRecord, ScoredRows
from mail_torchrec.config import dump_config, load_config
from mail_torchrec.reproduce.jobs import TrainingJob, plan_trainings
from mail_torchrec.reproduce.runner import run_jobs
from mail_torchrec.train.data_splits import open_sources
from tests.support.hostile import recorded_anew
from tests.support.small_rows import config_tree, write_rows

TRAINING = """#!/bin/sh
mkdir -p "$7" && cp "$5" "$7/config.yaml"
echo "$7" >> "{calls}"
case "$7" in {fail}) echo "Error: no luck"; exit 1;; {hang}) exec sleep 60;; esac
cp "{data}" "$7/data.json" && touch "$7/metrics.jsonl" && echo "{{}}" > "$7/metrics.json"
cd "$7" && sha256sum config.yaml data.json metrics.jsonl metrics.json > SHA256SUMS
"""
METHODS = ["BaseDNN", "MAIL-BaseDNN"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows/train/a.parquet", 30, seed=1)
    write_rows(tmp_path / "rows/test/b.parquet", 30, seed=2)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config_tree(tmp_path / "rows")))
    return tmp_path / "small.yaml"


def stand_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fail: str = "nothing", hang: str = "nothing"
) -> Path:
    """Puts a script in the place of Python; returns the file that lists its calls."""
    script, calls = tmp_path / "training.sh", tmp_path / "calls.txt"
    data = tmp_path / "data.json"
    write_data_record(tmp_path / "small.yaml", data)
    script.write_text(TRAINING.format(calls=calls, fail=fail, hang=hang, data=data))
    script.chmod(0o755)
    calls.write_text("")
    monkeypatch.setattr(sys, "executable", str(script))
    return calls


def write_data_record(config: Path, path: Path) -> None:
    """Writes what a training on the files of a configuration records of them."""
    sources, none = open_sources(load_config(config, [])), np.zeros(0, np.int64)
    DataRecord.of(*sources, ScoredRows.of(none, none, none)).write(path)


def planned(config: Path, *overrides: str, seeds: int = 2) -> list[TrainingJob]:
    return plan_trainings(config, config.parent / "out", METHODS, seeds, overrides)


def test_finished_runs_are_kept_and_more_seeds_are_added(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(monkeypatch, tmp_path)
    run_jobs(planned(config), tmp_path / "out", num_processes=2, threads=1)
    folders = [f"out/runs/{method}/seed-{seed}" for seed in (1, 2) for method in METHODS]
    assert sorted(calls.read_text().split()) == sorted(str(tmp_path / folder) for folder in folders)
    run_jobs(planned(config), tmp_path / "out", num_processes=2, threads=1)
    assert len(calls.read_text().split()) == 4
    run_jobs(planned(config, seeds=3), tmp_path / "out", num_processes=2, threads=1)
    assert len(calls.read_text().split()) == 6


def test_an_unfinished_run_starts_again_and_says_so(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = stand_in(monkeypatch, tmp_path)
    (tmp_path / "out/runs/BaseDNN/seed-1/checkpoints").mkdir(parents=True)
    run_jobs(planned(config, seeds=1), tmp_path / "out", num_processes=1, threads=1)
    assert "BaseDNN, seed 1 was not finished; it starts again" in capsys.readouterr().err
    assert (
        len(calls.read_text().split()) == 2
        and not (tmp_path / "out/runs/BaseDNN/seed-1/checkpoints").exists()
    )


def test_a_failed_run_stops_no_other_and_its_log_is_named(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(monkeypatch, tmp_path, fail="*/runs/BaseDNN/seed-1")
    log = tmp_path / "out/runs/BaseDNN/seed-1.log"
    with pytest.raises(ValueError) as error:
        run_jobs(planned(config), tmp_path / "out", num_processes=1, threads=1)
    expected = (
        "1 of 4 runs failed; the others are finished and kept:\n"
        f"  BaseDNN, seed 1: {log}: Error: no luck"
    )
    assert str(error.value) == expected and len(calls.read_text().split()) == 4


def test_an_interruption_ends_the_runs_and_leaves_what_is_finished(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(monkeypatch, tmp_path, hang="*/MAIL-BaseDNN/seed-1")
    runs = planned(config)
    started: list[subprocess.Popen[bytes]] = []
    popen, sleep = subprocess.Popen, time.sleep

    def remembered(*arguments: object, **options: object) -> "subprocess.Popen[bytes]":
        started.append(popen(*arguments, **options))  # type: ignore[call-overload]
        return started[-1]

    def interrupted(seconds: float) -> None:
        sleep(seconds)
        if len(calls.read_text().split()) == 4 and all(runs[i].is_finished() for i in (0, 2, 3)):
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", remembered)
    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(runs, tmp_path / "out", num_processes=2, threads=1)
    assert sorted(process.returncode for process in started) == [-signal.SIGTERM, 0, 0, 0]
    assert [run.is_finished() for run in runs] == [True, False, True, True]


def test_runs_of_another_configuration_are_refused_with_what_differs(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, tmp_path)
    run_jobs(planned(config, seeds=1), tmp_path / "out", num_processes=1, threads=1)
    with pytest.raises(
        ValueError,
        match=r"seed-1' was trained with another configuration or on other data; choose .*\n"
        r"  train.epochs: 1 there, 2 now",
    ):
        run_jobs(
            planned(config, "train.epochs=2", seeds=1), tmp_path / "out", num_processes=1, threads=1
        )


def test_settings_that_a_finished_run_does_not_know_yet_count_as_their_defaults(
    config: Path, tmp_path: Path
) -> None:
    run = planned(config)[0]
    run.path.mkdir(parents=True)
    run.run_dir.metrics.write_text("{}")
    run.run_dir.log.touch()
    write_data_record(config, run.run_dir.data)
    text = dump_config(run.config)
    assert "  shuffle_buffer_size: 65536\n" in text
    run.run_dir.config.write_text(text.replace("  shuffle_buffer_size: 65536\n", ""))
    recorded_anew(run.path)
    assert run.is_finished()
    run.run_dir.config.write_text(text + "unheard_of: 1\n")
    recorded_anew(run.path)
    with pytest.raises(
        ValueError,
        match=r"was trained with another configuration or on(.|\n)*unheard_of: unknown key",
    ):
        run.is_finished()


@pytest.mark.parametrize("changed", ["test/b.parquet", "validation/c.parquet"])
def test_finished_runs_of_other_data_are_refused(
    config: Path, tmp_path: Path, changed: str
) -> None:
    write_rows(tmp_path / "rows/validation/c.parquet", 30, seed=4)
    tree = yaml.safe_load(config.read_text())
    tree["data"]["validation"] = {"path": "validation"}
    config.write_text(yaml.safe_dump(tree))
    run = planned(config)[0]
    run.path.mkdir(parents=True)
    run.run_dir.metrics.write_text("{}")
    run.run_dir.log.touch()
    run.run_dir.config.write_text(dump_config(run.config))
    write_data_record(config, run.run_dir.data)
    recorded_anew(run.path)
    assert run.is_finished()
    write_rows(tmp_path / "rows" / changed, 30, seed=3)
    with pytest.raises(ValueError, match=r"on other data; (.|\n)*hold other rows now$"):
        planned(config)[0].is_finished()
    run.run_dir.data.unlink()
    with pytest.raises(ValueError, match=r"data.json is missing"):
        run.is_finished()


def test_methods_that_cannot_be_trained_are_named_before_any_run(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail_torchrec.config._PRESETS", tmp_path)
    with pytest.raises(
        ValueError,
        match=r"cannot be trained here; correct this, or name the others with --method:\n"
        r"MAIL-DMR tuned: no preset",
    ):
        plan_trainings(config, tmp_path / "out", ["DMR", "MAIL-DMR tuned"], 1, ())
    with pytest.raises(ValueError, match=r"DMR: tower 'dmr': unknown option 'width'"):
        plan_trainings(config, tmp_path / "out", ["DMR"], 1, ("model.tower_options.width=3",))
    with pytest.raises(
        ValueError, match=r"small.yaml \(with overrides\) does not fit:\n  train.epoch: unknown key"
    ):
        plan_trainings(config, tmp_path / "out", ["DMR"], 1, ("train.epoch=3",))
    assert not (tmp_path / "out").exists()


def test_missing_data_is_told_before_any_run(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        plan_trainings(config, tmp_path / "out", ["DMR"], 1, ("data.test=nowhere",))


def test_two_processes_do_not_share_a_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, tmp_path)
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(
            ValueError,
            match=r"another process reproduces into '.*out'; wait for it, or choose another --out",
        ):
            run_jobs(planned(config), tmp_path / "out", num_processes=1, threads=1)

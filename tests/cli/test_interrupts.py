"""Ctrl-C ends a command with one line, exit code 130, and no process of it left; training saves."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.distributed.reader_processes import start_fork_server
from tests.support.small_rows import config_tree, write_rows

_SIGNALS = (signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def not_ignored() -> Iterator[None]:
    """A script's background job may have the signals ignored, and so would these tests."""
    before = {one: signal.getsignal(one) for one in _SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What a command raises after the signal, as `compare`; as a library might put it."""
    raised: list[BaseException] = []

    @click.command()
    def compare() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            if raised:
                raise raised[0]

    monkeypatch.setitem(main.commands, "compare", compare)
    return raised


@pytest.mark.parametrize(
    "error",
    [None, RuntimeError("query interrupted"), ValueError("reader is gone"), ConnectionError("x")],
)
def test_one_line_and_the_code_of_the_signal_whatever_a_library_makes_of_it(
    interrupted: list[BaseException], error: BaseException | None
) -> None:
    interrupted += [error] if error else []
    result = CliRunner().invoke(main, ["compare"])
    assert (result.exit_code, result.output) == (130, "Error: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_of_several_ranks_one_speaks(
    interrupted: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    result = CliRunner().invoke(main, ["compare"])
    assert (result.exit_code, result.output) == (130, "")


def test_the_fork_server_of_the_readers_is_started_with_the_signals_ignored() -> None:
    before = [signal.getsignal(number) for number in (*_SIGNALS, signal.SIGTERM)]
    start_fork_server([])
    assert before == [signal.getsignal(number) for number in (*_SIGNALS, signal.SIGTERM)]


def test_a_training_that_has_not_begun_says_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr("mail_torchrec.train.trainer.train", train)
    write_rows(tmp_path / "rows/train/a.parquet", 50, seed=1)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config_tree(tmp_path / "rows")))
    words = ["train", "--config", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 130
    assert result.output == "Error: interrupted: nothing is lost but the start\n"
    (tmp_path / "run/checkpoints/step-00000020").mkdir(parents=True)
    result = CliRunner().invoke(main, words)
    assert result.output == "Error: interrupted: --resume goes on after step 20\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGHUP, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_training_with_reader_processes_saves_and_ends_with_all_of_them(
    tmp_path: Path, number: signal.Signals
) -> None:
    write_rows(tmp_path / "rows/train/a.parquet", 400, seed=1)
    write_rows(tmp_path / "rows/test/b.parquet", 50, seed=2)
    tree = config_tree(tmp_path / "rows", train={"epochs": 10_000, "log_every": 1})
    tree["data"]["num_workers"] = 2
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    run_dir = tmp_path / "run"
    words = ["train", "--config", str(tmp_path / "c.yaml"), "--run-dir", str(run_dir)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mail_torchrec", *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A script's background job may have them ignored, and the children of these tests with it.
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in _SIGNALS],
    )
    try:
        # The file is there a moment before the training handles signals; its first line after it.
        log = run_dir / "metrics.jsonl"
        while not (log.exists() and log.stat().st_size) and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, number)  # as a terminal does, to the fork server too
        # The pipe is at its end when no child has it open any more.
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert re.search(r"^told to stop: saved after step \d+; --resume", errors, re.MULTILINE)
    assert "Traceback" not in errors and "resource_tracker" not in errors, errors

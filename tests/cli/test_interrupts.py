"""Ctrl-C ends a command with one line, exit code 130, and no process of it left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.distributed.reader_processes import start_fork_server
from tests.support.small_rows import config_tree, write_rows


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
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    start_fork_server([])
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.slow
def test_a_training_with_reader_processes_ends_with_all_of_them(tmp_path: Path) -> None:
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
        # A script's background job may have it ignored, and the children of these tests with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while not (run_dir / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        # The pipe is at its end when no child has it open any more.
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.rstrip().endswith("Error: interrupted") and "Traceback" not in errors

"""Waiting for data or a disk in vain ends a run with the file's name; slow work does not."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

import pytest

from mail_torchrec.data.parquet.access import reading
from mail_torchrec.distributed.idle_watchdog import IdleWatchdog
from mail_torchrec.utils.run_files import write_file, writing
from mail_torchrec.utils.spans import reset_spans, span
from tests.support.ranks import run_processes

TIMEOUT = 0.4  # seconds


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the watchdog ends the run with."""
    said: list[str] = []
    watchdog = IdleWatchdog(TIMEOUT, said.append)
    reset_spans()
    watchdog.start()
    yield said
    watchdog.stop()


def wait_until(said: list[str]) -> None:
    """Hangs until the watchdog speaks."""
    end = time.monotonic() + 100 * TIMEOUT
    while not said and time.monotonic() < end:
        time.sleep(TIMEOUT)


def work(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(10_000))


def hang(number: int, folder: str, reads: bool) -> None:
    """Waits for a file or a disk in vain; in a process whose other threads use no processor."""
    said: list[str] = []
    told: list[str] = []
    watchdog = IdleWatchdog(TIMEOUT, said.append)
    with (
        patch("mail_torchrec.distributed.idle_watchdog.write_unlocked", told.append),
        patch("os.fsync", lambda _: wait_until(said)),  # a mount that is away
    ):
        watchdog.start()
        if reads:
            with span("step 3"), span("input", reads=True), reading("/mnt/day.parquet", 7):
                wait_until(said)
        else:
            with span("step 3"), writing(Path(folder)):
                write_file(Path(folder) / "metrics.json", "{}")
        watchdog.stop()
    (Path(folder) / "said.json").write_text(json.dumps([said, told]))


def test_a_hung_file_is_named_with_its_row_group_first_in_a_warning(tmp_path: Path) -> None:
    run_processes(1, tmp_path, hang, str(tmp_path), True)
    [said], [told] = json.loads((tmp_path / "said.json").read_text())
    assert said.startswith("waited 0.4 s (train.timeout) for data: this process (pid ")
    assert "reads '/mnt/day.parquet, row group 7' for " in said
    assert told.startswith("WARNING: waiting for data for 0 s in 'step 3, input': this process")


def test_a_hung_write_is_named(tmp_path: Path) -> None:
    run_processes(1, tmp_path, hang, str(tmp_path), False)
    [said], _ = json.loads((tmp_path / "said.json").read_text())
    assert said.startswith("waited 0.4 s (train.timeout) for a disk: this process (pid ")
    assert f"writes '{tmp_path / 'metrics.json'}' for " in said


@pytest.mark.parametrize("waits", [lambda: span("reading", reads=True), lambda: writing(Path("x"))])
def test_slow_work_is_no_fault(
    said: list[str], waits: Callable[[], AbstractContextManager[None]]
) -> None:
    with waits():
        work(3 * TIMEOUT)
    for _ in range(4):  # each wait is one of its own
        with waits():
            time.sleep(TIMEOUT / 2)
    assert said == []


def test_a_slow_disk_and_other_waiting_are_no_fault(said: list[str], tmp_path: Path) -> None:
    with writing(tmp_path), (tmp_path / "x").open("wb", buffering=0) as file:
        for _ in range(8):
            time.sleep(TIMEOUT / 4)
            file.write(b"x")
    with span("communication"):  # which the other ranks' watchdogs are for
        time.sleep(2 * TIMEOUT)
    assert said == []

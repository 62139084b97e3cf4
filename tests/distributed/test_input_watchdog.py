"""Waiting for data in vain ends a run with the file's name; slow work does not."""

import time
from collections.abc import Iterator

import pytest

from mail_torchrec.data.parquet.access import reading
from mail_torchrec.distributed.input_watchdog import InputWatchdog
from mail_torchrec.utils.spans import reset_spans, span

TIMEOUT = 0.4  # seconds


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the watchdog ends the run with."""
    said: list[str] = []
    watchdog = InputWatchdog(TIMEOUT, said.append)
    reset_spans()
    watchdog.start()
    yield said
    watchdog.stop()


def work(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(10_000))


def test_a_hung_file_is_named_with_its_row_group_first_in_a_warning(
    said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with span("step 3"), span("input", reads=True), reading("/mnt/day.parquet", row_group=7):
        time.sleep(3 * TIMEOUT)
    assert len(said) == 1
    assert said[0].startswith("waited 0.4 s (train.timeout) for data: this process (pid ")
    assert "reads '/mnt/day.parquet, row group 7' for " in said[0]
    warnings = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warnings) == 1 and "in 'step 3, input': this process" in warnings[0]


def test_neither_slow_work_nor_other_waiting_is_a_fault(said: list[str]) -> None:
    with span("reading", reads=True):
        work(3 * TIMEOUT)
    with span("communication"):  # which the other ranks' watchdogs are for
        time.sleep(2 * TIMEOUT)
    for _ in range(4):  # each wait is one of its own
        with span("input", reads=True):
            time.sleep(TIMEOUT / 2)
    assert said == []

"""Progress on a terminal and in a log file."""

import io
import sys
import time

import pytest

from mail_torchrec.utils import progress
from mail_torchrec.utils.progress import progress_bar


class Terminal(io.StringIO):
    """Standard error of a person's terminal."""

    def isatty(self) -> bool:
        return True


def run_bar(*, leave: bool) -> None:
    with progress_bar(desc="train", unit="step", total=6, leave=leave) as bar:
        for _ in range(6):
            time.sleep(0.02)
            bar.update()
            bar.set_postfix_str("1,000 rows/s", refresh=False)


def test_without_a_terminal_progress_is_plain_lines_at_an_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.05)
    run_bar(leave=True)
    text = written.getvalue()
    assert "\r" not in text and "\x1b" not in text and text.endswith("\n")
    lines = text.splitlines()
    assert all(line.startswith("train: ") for line in lines)
    assert "0/6" in lines[0] and "6/6" in lines[-1] and "1,000 rows/s" in lines[-1]
    assert 3 <= len(lines) <= 6, lines


def test_a_short_bar_that_leaves_nothing_prints_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    run_bar(leave=False)
    assert written.getvalue() == ""


def test_on_a_terminal_one_line_is_drawn_over_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Terminal()
    monkeypatch.setattr(sys, "stderr", written)
    run_bar(leave=True)
    assert written.getvalue().count("\n") == 1 and written.getvalue().count("\r") >= 2


def test_items_pass_through_and_a_disabled_bar_is_silent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    items = progress_bar(range(3), desc="items", unit="item", leave=True, disable=True)
    assert list(items) == [0, 1, 2]
    assert capsys.readouterr().err == ""

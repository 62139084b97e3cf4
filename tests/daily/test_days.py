"""The README's eight days train as they stand there, and ``mail-torchrec days`` shows them."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from mail_torchrec.cli import main
from tests.support.pages import page
from tests.support.preloaded import ROOT
from tests.support.processes import start

pytestmark = pytest.mark.slow  # eight trainings

SMALL = ["users=120", "items=40", "min_history=2", "max_history=10"]
SHIM = """#!/usr/bin/env bash
printf '%s\\0' "$@" > "$PIPES/request"
read -r code < "$PIPES/reply"
exit "$code"
"""
DAYS = [f"2024-05-0{number}" for number in range(1, 9)]


class ForkedCommands(Thread):
    """Runs each ``mail-torchrec`` of a shell as a fork, which needs no seconds of imports."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self.log = folder, folder / "log"
        for name in ("request", "reply"):
            os.mkfifo(folder / name)
        shim = folder / "bin" / "mail-torchrec"
        shim.parent.mkdir()
        shim.write_text(SHIM)
        shim.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{shim.parent}:{os.environ['PATH']}",
            "PIPES": str(folder),
        }

    def run(self) -> None:
        """Serves until it is asked for nothing."""
        while words := (self._folder / "request").read_text().split("\0")[:-1]:
            small = SMALL if words[0] == "synthesize" else []
            process = start([*words, *small], self.log, cwd=self._folder)
            process.join(120)
            (self._folder / "reply").write_text(f"{process.exitcode}\n")

    def stop(self) -> None:
        """Ends the thread."""
        (self._folder / "request").write_text("")
        self.join(10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's block was run."""
    folder = tmp_path_factory.mktemp("days")
    (folder / "launch").symlink_to(ROOT / "launch")
    [block] = [block for block in page("README.md").blocks("bash") if "--days" in block]
    commands = ForkedCommands(folder)
    commands.start()
    done = subprocess.run(
        ["bash", "-euc", block], cwd=folder, env=commands.environment, timeout=300, check=False
    )
    commands.stop()
    assert done.returncode == 0, commands.log.read_text()[-3000:]
    return folder


def report(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "runs/days/days.json").read_text())["chains"]
    return found


def test_each_day_has_the_metrics_that_the_day_before_it_was_tested_with(folder: Path) -> None:
    [chain] = report(folder)
    assert [day["day"] for day in chain["days"]] == DAYS
    assert chain["days"][0]["metrics"] == {}
    for number, day in enumerate(chain["days"][1:], start=1):
        tested = json.loads((folder / "runs" / f"day{number}" / "metrics.json").read_text())
        names = {"all": "all", "new_users": "new", "old_users": "old"}
        for cohort, name in names.items():
            found = {key: day["metrics"][cohort][key] for key in ("auc", "log_loss", "rows")}
            assert found == pytest.approx({key: tested[name][key] for key in found})


def test_rows_and_full_rows_are_those_of_the_files(folder: Path) -> None:
    [chain] = report(folder)
    seen: set[int] = set()
    for day in chain["days"]:
        rows = pq.read_table(folder / "worlds/days" / f"day={day['day']}" / "part-00000.parquet")
        before = len(seen)
        histories = rows["history"].combine_chunks().flatten()
        seen |= {*rows["item_id"].to_pylist(), *histories.to_pylist()}
        assert day["rows"] == len(rows) and day["seconds"] > 0
        item = day["tables"]["item"]
        assert (item["owned"], item["rows"]) == (len(seen), 1000 - 2 - 16)
        assert (item["admitted"], item["left"]) == (len(seen) - before, 0)


def test_the_files_of_a_report_have_all_days(folder: Path) -> None:
    out = folder / "runs" / "days"
    assert {path.name for path in out.iterdir()} == {
        f"days.{kind}" for kind in ("md", "json", "html", "png")
    }
    assert all(day in (out / "days.md").read_text() for day in DAYS)
    assert "data:image/png;base64" in (out / "days.html").read_text()


@pytest.fixture
def runs(folder: Path, tmp_path: Path) -> Path:
    """A copy of the last runs, to be harmed."""
    for number in (7, 8):
        shutil.copytree(folder / "runs" / f"day{number}", tmp_path / f"day{number}")
    return tmp_path


def days(*run_dirs: Path) -> Result:
    return CliRunner().invoke(main, ["days", *map(str, run_dirs)])


def lines(result: Result) -> list[list[str]]:
    """The cells of the tables' lines."""
    found = [line for line in result.stdout.splitlines() if line.startswith("| 2024")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_runs_of_one_chain_are_shown_once_and_others_beside_it(folder: Path, runs: Path) -> None:
    all_runs = [folder / "runs" / f"day{number}" for number in range(1, 9)]
    assert len(lines(days(*all_runs))) == len(lines(days(all_runs[-1]))) == 8
    both = days(folder / "runs" / "day8", runs / "day7")  # a copy of one of its ancestors
    assert len(lines(both)) == 8 + 7 and "**day8**" in both.stdout


def test_a_run_that_is_gone_or_another_one_is_left_out_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there, aside = folder / "runs" / "day4", folder / "aside"
    there.rename(aside)
    try:
        gone = lines(days(folder / "runs" / "day5"))
        shutil.copytree(folder / "runs" / "day2", there)
        other = lines(days(folder / "runs" / "day5"))
    finally:
        shutil.rmtree(there, ignore_errors=True)
        aside.rename(there)
    assert gone == other and len(gone) == 5
    [rows] = [line[2] for line in report_lines(folder) if line[1] == "day4"]
    assert gone[3][:3] == [DAYS[3], "day4", rows] and set(gone[3][3:]) == {"-"}
    assert "is gone" in caplog.text and "another run is there now" in caplog.text


def report_lines(folder: Path) -> list[list[str]]:
    return lines(days(folder / "runs" / "day8"))


def test_a_run_that_did_not_finish_is_shown_with_what_it_has(runs: Path) -> None:
    for name in ("metrics.json", "data.json"):
        (runs / "day8" / name).unlink()
    last = lines(days(runs / "day8"))[-1]
    assert last[:4] == [DAYS[7], "day8", "-", "-"] and "-" not in last[4:8]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("progressive.json", b"{}", "progressive.json"),
        ("parent.json", b"{", "parent.json"),
        ("vocabularies/item.parquet", b"", "item.parquet"),
        ("config.yaml", None, "is this a run directory"),
    ],
)
def test_damaged_files_are_named(
    runs: Path, name: str, content: bytes | None, message: str
) -> None:
    path = runs / "day8" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    result = days(runs / "day8")
    assert result.exit_code == 1 and message in result.stderr
    assert "Traceback" not in result.stderr

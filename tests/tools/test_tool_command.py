"""Errors of a tool's user."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tools import bench_serving, load_serving


@pytest.mark.parametrize(
    ("tool", "options"),
    [
        (bench_serving.main, ["--run-dir", "nowhere"]),
        (load_serving.main, ["--model", "nowhere", "--out", "report.md"]),
    ],
)
def test_a_run_that_is_missing_is_an_error_in_one_line(
    tool: click.Command, options: list[str], tmp_path: Path
) -> None:
    runner = CliRunner()
    with runner.isolated_filesystem(tmp_path):
        done = runner.invoke(tool, options)
    [line] = done.output.splitlines()
    assert line.startswith("Error: 'nowhere' should be the directory of a trained run")
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)

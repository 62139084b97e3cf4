"""The bench of deltas finds no failed request and no other score, on the smallest chain."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.bench_deltas import find_problems, main
from tools.delta_chain import ChainLink
from tools.load_clients import ClientReport


@pytest.mark.long
def test_the_smallest_chain_is_served_without_a_fault(tmp_path: Path) -> None:
    report = tmp_path / "deltas.md"
    sizes = ("--deltas", "2", "--users", "60", "--items", "60", "--rows", "400")
    paths = ("--out", str(tmp_path / "chain"), "--report", str(report))
    result = CliRunner().invoke(main, [*sizes, "--seconds", "1", *paths])
    assert result.exit_code == 0, result.output
    assert "**2 deltas, " in report.read_text() and " 0 failed or wrong.**" in report.read_text()


def test_a_difference_a_failure_and_a_version_that_never_responded_are_problems() -> None:
    link = ChainLink(0, "a", 1.0, 1.0, 1, 1, 1.0)
    good = ClientReport("REST")
    good.responses["a"] = 5
    assert find_problems([good], [link]) == []
    bad = ClientReport("gRPC", max_difference=1e-9, failures=["refused"])
    assert len(find_problems([bad], [link])) == 3

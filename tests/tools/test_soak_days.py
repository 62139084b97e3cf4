"""The soak of days, on two of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.torchrun_job import ROOT, child_environment


@pytest.mark.slow
@pytest.mark.long
def test_two_days_with_kills_lose_nothing(tmp_path: Path) -> None:
    """And the same command finds both days done."""
    folder, out = tmp_path / "soak", tmp_path / "soak.md"
    command = [sys.executable, str(ROOT / "tools/soak_days.py"), "--days", "2", "--kills", "2"]
    command += ["--folder", str(folder), "--out", str(out)]
    for _ in range(2):
        done = subprocess.run(
            command, cwd=ROOT, env=child_environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
    days = [json.loads(line) for line in (folder / "days.jsonl").read_text().splitlines()]
    assert [day["how"] for day in days] == ["a full export", "a delta"]
    assert "**Nothing was lost.** 2 days, 1 of them delivered as a delta" in out.read_text()

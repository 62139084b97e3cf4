"""The comparison of methods over seeds, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.small_rows import config_tree, write_rows

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_methods_are_compared_and_finished_runs_are_kept(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows/train/a.parquet", 120, seed=1)
    write_rows(tmp_path / "rows/test/b.parquet", 100, seed=2)
    tree = config_tree(tmp_path / "rows") | {"model": {"zero_shot": config_tree(tmp_path)["model"]["zero_shot"]}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "tools/compare_methods.py", "--config", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out")]
    command += ["--seeds", "1", "--tower", "BaseDNN"]
    first = compare(command)
    assert first.returncode == 0 and "MAIL-BaseDNN - BaseDNN" in first.stdout
    methods = [row["name"] for row in json.loads((tmp_path / "out/comparison.json").read_text())]
    assert methods == ["BaseDNN", "MAIL-BaseDNN", "BaseDNN oracle", "MAIL-BaseDNN oracle"]
    written = (tmp_path / "out/BaseDNN/seed-1/metrics.json").stat().st_mtime_ns
    assert compare(command).stdout == first.stdout
    assert (tmp_path / "out/BaseDNN/seed-1/metrics.json").stat().st_mtime_ns == written
    other = compare([*command, "train.epochs=2"])
    assert other.returncode and "was trained with another configuration; choose another --out" in other.stderr


def compare(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=200)

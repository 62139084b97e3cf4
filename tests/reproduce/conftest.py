"""Fixtures of the tables and the warm-up."""

from pathlib import Path

import pytest
import yaml

from mail_torchrec.data.cold_start import ColdStartSettings
from tests.support.processes import PreloadedPopen
from tests.support.small_rows import config_tree, write_rows

HIDING = ColdStartSettings(hide_share=0.4)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of small rows, of whose users 40 % are hidden."""
    write_rows(tmp_path / "rows/train/a.parquet", 120, seed=1)
    write_rows(tmp_path / "rows/test/b.parquet", 100, seed=2)
    tree = config_tree(
        tmp_path / "rows", data={"root": str(tmp_path / "rows"), "cold_start": {"hide_share": 0.4}}
    )
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "small.yaml"


@pytest.fixture
def preloaded_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings are processes that need not import torch first."""
    monkeypatch.setattr("mail_torchrec.reproduce.runner.subprocess.Popen", PreloadedPopen)

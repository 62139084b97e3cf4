"""A finished run is kept where it is the same, and named where it is not."""

from pathlib import Path
from typing import Any

import pytest

from mail_torchrec.config import Config
from mail_torchrec.train.run_dir import RunDir
from tests.support.small_rows import config_tree, write_rows
from tools.kept_runs import train_once

PLAIN = {"tower": "base_dnn", "tower_options": {"hidden_dims": [8]}, "zero_shot": None}


def test_a_run_of_other_settings_or_rows_is_refused_and_a_stopped_one_begins_anew(
    tmp_path: Path,
) -> None:
    def config(**train: Any) -> Config:
        return Config.model_validate(config_tree(tmp_path, model=PLAIN, train=train))

    for part, seed in (("train", 1), ("test", 2)):
        write_rows(tmp_path / part / "a.parquet", 60, seed)
    run = RunDir(tmp_path / "run")
    train_once(config(), run)
    before = run.metrics.stat().st_mtime_ns
    train_once(config(), run)
    assert run.metrics.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"(?s)another configuration.*batch_size: 32 there, 16"):
        train_once(config(batch_size=16), run)
    write_rows(tmp_path / "test" / "a.parquet", 90, seed=3)
    with pytest.raises(ValueError, match="hold other rows now"):
        train_once(config(), run)
    run.metrics.unlink()
    train_once(config(batch_size=16), run)
    assert "batch_size: 16" in run.config.read_text()

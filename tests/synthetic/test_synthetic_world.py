"""MAIL on a world of known truth: histories show interests well, clicks hardly."""

from pathlib import Path

import pytest

from mail_torchrec.config import load_config
from mail_torchrec.synthetic.writer import WorldSettings, write_world
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.long
def test_virtual_behaviours_help_new_users_and_leave_old_ones_alone(tmp_path: Path) -> None:
    """Holds the README's claim on a smaller world of another seed, with a far smaller margin."""
    settings = WorldSettings(users=4_000, seed=4, min_history=10, max_history=20)
    write_world(settings, tmp_path / "world")
    overrides = [f"data.root={tmp_path / 'world'}", "model.tower=base_dnn", "train.batch_size=128"]
    metrics = {}
    for name, more in (("base", ["model.zero_shot=null"]), ("mail", [])):
        config = load_config(ROOT / "launch/configs/synthetic.yaml", [*overrides, *more])
        metrics[name] = train(config, RunDir(tmp_path / name))
    gains = {
        part: (metrics["mail"][part]["auc"] or 0) - (metrics["base"][part]["auc"] or 0)
        for part in ("new", "old")
    }
    assert gains["new"] > 0.02
    assert gains["old"] > -0.01

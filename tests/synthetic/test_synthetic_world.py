"""Where the truth is known: attributes decide interests, histories show them, clicks hardly do."""

from pathlib import Path

import pytest

from mail_torchrec.config import load_config
from mail_torchrec.synthetic.writer import WorldSettings, write_world
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_virtual_behaviours_help_new_users_and_leave_old_ones_alone(tmp_path: Path) -> None:
    """The README's claim on a smaller world of another seed, with a margin far below what is found there."""
    write_world(WorldSettings(users=8_000, seed=3), tmp_path / "world")
    overrides = [f"data.root={tmp_path / 'world'}", "model.tower=base_dnn", "train.batch_size=128"]
    figures = {}
    for name, more in (("base", ["model.zero_shot=null"]), ("mail", [])):
        config = load_config(ROOT / "launch/configs/synthetic.yaml", [*overrides, *more])
        figures[name] = train(config, RunDir(tmp_path / name))
    gains = {
        part: (figures["mail"][part]["auc"] or 0) - (figures["base"][part]["auc"] or 0)
        for part in ("new", "old")
    }
    assert gains["new"] > 0.02
    assert gains["old"] > -0.01

"""A small run with zero-shot tower, and its export with golden behaviours."""

from pathlib import Path

import pytest

from tests.support.made_once import made_once
from tests.support.small_rows import config_tree, write_rows

NUM_USERS = 60


@pytest.fixture(scope="session")
def with_drift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `run` and its export `model`, of 60 new and 60 old users."""
    return made_once(tmp_path_factory, "with_drift", _export)


def _export(root: Path) -> None:
    from mail_torchrec.config import Config
    from mail_torchrec.export.command import ExportOptions, export
    from mail_torchrec.train.run_dir import RunDir
    from mail_torchrec.train.trainer import train

    write_rows(root / "train" / "a.parquet", 300, seed=1)
    write_rows(root / "test" / "c.parquet", 700, seed=3)
    train(Config.model_validate(config_tree(root)), RunDir(root / "run"))
    export(ExportOptions(RunDir(root / "run"), root / "model", drift=NUM_USERS))

"""Two exported versions of one run, for the tests of servers and Triton."""

from pathlib import Path

import pytest

from mail_torchrec.inference.manifest import ArtifactManifest
from tests.support.made_once import made_once
from tests.support.small_rows import config_tree, write_rows
from tools.served import make_version


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `first` and, newer, `second`, whose scores differ."""
    return made_once(tmp_path_factory, "exported", _export) / "models"


def _export(root: Path) -> None:
    from mail_torchrec.config import Config
    from mail_torchrec.export.command import ExportOptions, export
    from mail_torchrec.train.run_dir import RunDir
    from mail_torchrec.train.trainer import train

    write_rows(root / "train" / "a.parquet", 250, seed=1)
    write_rows(root / "test" / "c.parquet", 120, seed=3)
    tree = config_tree(root, train={"tables": {"name": "adagrad", "learning_rate": 0.2}})
    model = tree["model"] | {"multi_task": {}}
    train(Config.model_validate(tree | {"model": model}), RunDir(root / "run"))
    first, second = root / "models" / "first", root / "models" / "second"
    export(ExportOptions(RunDir(root / "run"), first))
    make_version(first, second, created="2998-01-01T00:00:00+00:00", factor=1.5)


def version_in(folder: Path) -> str:
    """Reads the version of an exported model."""
    return ArtifactManifest.read(folder).version

"""One run, exported twice; and a real server in a process of its own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mail_torchrec.config import Config
from mail_torchrec.export.command import Order, export
from mail_torchrec.inference.manifest import Manifest
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import config_tree, write_rows
from tools.served import Running, make_version, running


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `first` and, newer, `second`, whose scores are others."""
    root = tmp_path_factory.mktemp("served")
    write_rows(root / "train" / "a.parquet", 250, seed=1)
    write_rows(root / "test" / "c.parquet", 120, seed=3)
    tree = config_tree(root, train={"tables": {"name": "adagrad", "learning_rate": 0.2}})
    train(
        Config.model_validate(tree | {"model": tree["model"] | {"multi_task": {}}}),
        RunDir(root / "run"),
    )
    export(Order(RunDir(root / "run"), root / "models" / "first"))
    make_version(
        root / "models" / "first",
        root / "models" / "second",
        created="2998-01-01T00:00:00+00:00",
        factor=1.5,
    )
    return root / "models"


def version_in(folder: Path) -> str:
    return Manifest.read(folder).version


@pytest.fixture(scope="session")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of `first` alone."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(exported / "first", folder / "model")
    with running(
        folder / "model",
        folder / "log",
        "--name",
        "ads",
        "--threads",
        "1",
        "--max-candidates",
        "40",
        "--max-bytes",
        "50000",
    ) as found:
        yield found

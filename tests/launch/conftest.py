"""A folder to launch from: the checkout's launch/ and components/, and a small synthetic world."""

from pathlib import Path

import pytest

from mail_torchrec.synthetic.writer import WorldSettings, write_world
from tests.support.hosts import ROOT


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's commands run."""
    folder = tmp_path_factory.mktemp("folder")
    for name in ("launch", "components"):
        (folder / name).symlink_to(ROOT / name)
    write_world(
        WorldSettings(users=300, items=200, test_users=0.3, train_rows_per_user=4, max_history=20),
        folder / "worlds" / "demo",
    )
    return folder

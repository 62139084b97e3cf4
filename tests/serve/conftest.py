"""A real server in a process of its own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.served import Running, running


@pytest.fixture(scope="session")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of `first` alone."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(exported / "first", folder / "model")
    limits = ("--max-candidates", "40", "--max-bytes", "50000")
    with running(
        folder / "model", folder / "log", "--name", "ads", "--threads", "1", *limits
    ) as found:
        yield found

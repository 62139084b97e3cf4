"""Fixtures for more than one folder of tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.distributed.process_group import process_group
from tests.support import plain
from tests.support.small_rows import write_rows

# A time limit on each example would be a timed test, which a busy machine fails.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def schema() -> Schema:
    """A small schema with every kind of column; ``tests/data/plain.py`` writes and encodes rows of it."""
    return plain.schema()


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    with process_group("cpu"):
        yield


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 300 training rows of ``tests/small_rows.py``."""
    folder = tmp_path_factory.mktemp("small")
    write_rows(folder / "train" / "a.parquet", 300, seed=1)
    return folder

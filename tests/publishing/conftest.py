"""A published folder on a disk, and one in an S3 server."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.deltas.conftest import days
from tests.support.object_store import ObjectStore, object_store

__all__ = ["days"]  # a fixture of the deltas' tests


@pytest.fixture(scope="package")
def store() -> Iterator[ObjectStore]:
    """An S3 server that checks signatures."""
    with object_store() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder to publish to; nothing is there."""
    return str(tmp_path / "published")


@pytest.fixture(params=["a folder", "an object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place to publish to; nothing is there."""
    if request.param == "a folder":
        return str(tmp_path / "published")
    running: ObjectStore = request.getfixturevalue("store")
    return running.uri(f"ads/{uuid4()}")

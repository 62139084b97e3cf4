"""Fixtures for more than one folder of tests."""

import pytest

from mail_torchrec.data.schema import Schema
from tests.data import plain


@pytest.fixture
def schema() -> Schema:
    """A small schema with every kind of column; ``tests/data/plain.py`` writes and encodes rows of it."""
    return plain.schema()

"""Fixtures for more than one folder of tests."""

import pytest
from hypothesis import settings

from mail_torchrec.data.schema import Schema
from tests.data import plain

# A time limit on each example would be a timed test, which a busy machine fails.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def schema() -> Schema:
    """A small schema with every kind of column; ``tests/data/plain.py`` writes and encodes rows of it."""
    return plain.schema()

"""Fixtures of the tools' tests."""

import pytest

from tests.support.preloaded import PreloadedContext
from tools.benchmark import subprocess_trainer


@pytest.fixture
def preloaded_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers of the bench are processes that need not import torch first."""
    monkeypatch.setattr(subprocess_trainer.mp, "get_context", lambda _: PreloadedContext())

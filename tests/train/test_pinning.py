"""Batches are pinned for a GPU alone, since pinning opens CUDA."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.train import data_splits
from tests.support.small_rows import config_tree


@pytest.mark.parametrize(("device", "pins"), [("cpu", False), ("cuda", True), ("auto", True)])
def test_a_training_on_the_cpu_of_a_host_with_gpus_pins_nothing(
    device: str, pins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(data_splits, "Reader", lambda *_, **__: None)
    monkeypatch.setattr(data_splits, "DataLoader", lambda *_, **settings: given.update(settings))
    tree = config_tree(Path("nowhere"), train={"device": device}, data={"num_workers": 0})
    nothing: Any = None
    config = Config.model_validate(tree)
    data_splits.load_split(config, nothing, nothing, nothing, training=False)
    assert given["pin_memory"] is pins

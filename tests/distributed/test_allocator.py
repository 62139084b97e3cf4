"""Settings of CUDA's memory allocator, which are made before it begins."""

import os

import pytest
import torch

from mail_torchrec.distributed.device import own_device


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}, "backend:cudaMallocAsync"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
    ids=str,
)
def test_segments_grow_unless_the_user_chose_otherwise(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # put back after the test
        del os.environ[name]
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    variable = "PYTORCH_CUDA_ALLOC_CONF"
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: seen.append(os.environ.get(variable)))
    assert own_device("auto") == torch.device("cuda", 0)
    assert seen == [expected]
    assert own_device("cpu") == torch.device("cpu") and len(seen) == 1

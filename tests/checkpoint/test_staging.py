"""Host memory and devices of checkpoints that are written beside the training.

CUDA is made up: tensors are on the CPU and said to be a GPU's.
"""

from collections.abc import Callable
from pathlib import Path
from threading import current_thread
from types import SimpleNamespace

import pytest
import torch

from mail_torchrec.checkpoint.folder import Checkpoints
from mail_torchrec.checkpoint.manifest import RankProgress
from mail_torchrec.checkpoint.saver import CheckpointSaver
from mail_torchrec.checkpoint.settings import CheckpointSettings
from mail_torchrec.checkpoint.staging import Stager
from mail_torchrec.checkpoint.storage import write_tensors
from mail_torchrec.checkpoint.writer import Snapshot


class GpuTensor(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    is_cuda = True


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Address -> bytes of the memory whose pages are locked now."""
    found: dict[int, int] = {}

    def register(address: int, num_bytes: int, _: int) -> int:
        assert address % 4096 == 0
        found[address] = num_bytes
        return 0

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=found.pop)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return found


def test_large_buffers_of_a_gpu_are_locked_in_their_own_size_and_given_back(
    locked: dict[int, int],
) -> None:
    small, large = torch.rand(3), torch.rand(300_000, 3)
    state = {"small": small, "large": large.as_subclass(GpuTensor), "host": torch.rand(400_000)}
    stager = Stager()
    for _ in range(2):
        copied = stager.copy(state)
        assert all(torch.equal(copied[name], value) for name, value in state.items())
        assert list(locked.values()) == [3_600_000]
    del state["large"]
    stager.copy(state)
    assert not locked
    stager.prepare({"large": large.as_subclass(GpuTensor)})
    assert locked
    stager.close()
    assert not locked


def test_memory_that_cannot_be_locked_is_told_once_and_copied_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = SimpleNamespace(cudaHostRegister=lambda *_: 2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    state = {name: torch.rand(300_000).as_subclass(GpuTensor) for name in "ab"}
    stager = Stager()
    with caplog.at_level("WARNING"):
        copied = stager.copy(state)
    assert all(torch.equal(copied[name], value) for name, value in state.items())
    assert [record.getMessage() for record in caplog.records] == [
        "checkpoints are copied slowly: CUDA cannot lock 1.1 MiB of host memory (error 2); is the "
        "host's memory full, or ulimit -l too low?"
    ]
    stager.close()


def test_the_writing_thread_uses_the_device_of_its_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, single_process: None
) -> None:
    set_in: list[tuple[str, int]] = []
    note: Callable[[int], None] = lambda gpu: set_in.append((current_thread().name, gpu))  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", note)
    written: list[int] = []
    progress = RankProgress(losses={}, counts=[])
    snapshot = Snapshot(1, {"weight": torch.ones(2)}, progress, lambda _: pytest.fail("never"), {})
    monkeypatch.setattr(
        "mail_torchrec.checkpoint.saver.write_checkpoint", lambda *_: written.append(len(set_in))
    )
    saver = CheckpointSaver(Checkpoints(tmp_path), CheckpointSettings(), print, lambda _: None)
    with saver:
        saver.save(snapshot)
        saver.finish()
    assert [gpu for _, gpu in set_in] == [3] and written == [1]
    assert set_in[0][0] != "MainThread"


def test_writing_does_not_open_the_first_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: pytest.fail("CUDA was opened"))
    write_tensors({"weight": torch.ones(2)}, tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint/tensors.json").exists()

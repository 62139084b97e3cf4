"""Folders of checkpoints: what is published is whole, what is kept, what is damaged is found."""

import subprocess
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import load

from mail_torchrec.checkpoint.folder import Checkpoints
from mail_torchrec.checkpoint.staging import StateDict
from mail_torchrec.checkpoint.storage import read_tensor_metadata, read_tensors, write_tensors
from mail_torchrec.records.checksums import (
    CHECKSUMS,
    checksum_error,
    read_checksums,
    sha256_of_files,
    write_checksums,
)


def published(checkpoints: Checkpoints, step: int) -> Path:
    folder = checkpoints.prepare(step)
    (folder / "a").write_text(f"{step}")
    (folder / "b").write_bytes(bytes(range(100)))
    write_checksums(folder, sha256_of_files(folder, ["a", "b"]))
    return checkpoints.publish(step)


def test_the_newest_are_kept_and_leftovers_are_cleaned(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.published() == []
    for step in (9, 10, 100, 123456789):
        published(checkpoints, step)
    checkpoints.prepare(200)
    assert [path.name for path in checkpoints.published()] == [
        "step-00000009",
        "step-00000010",
        "step-00000100",
        "step-123456789",
    ]
    checkpoints.retain(2)
    assert [path.name for path in checkpoints.published()] == ["step-00000100", "step-123456789"]
    assert (checkpoints.path / ".step-00000200.partial").exists()
    checkpoints.clean()
    assert sorted(path.name for path in checkpoints.path.iterdir()) == [
        "step-00000100",
        "step-123456789",
    ]


def test_any_changed_bit_is_found_and_sha256sum_agrees(tmp_path: Path) -> None:
    folder = published(Checkpoints(tmp_path), 5)

    def whole() -> bool:
        try:
            return not any(
                checksum_error(folder, name, expected)
                for name, expected in read_checksums(folder).items()
            )
        except ValueError:
            return False

    assert whole()
    assert (
        subprocess.run(
            ["sha256sum", "--check", "--quiet", CHECKSUMS], cwd=folder, check=False
        ).returncode
        == 0
    )
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for place in {0, len(data) // 3, len(data) - 1}:
            path.write_bytes(data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :])
            assert not whole(), (path.name, place)
        path.write_bytes(data[:-1])
        assert not whole() or path.name == CHECKSUMS
        path.write_bytes(data)
    (folder / "b").unlink()
    assert not whole()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_tensors_come_back_without_the_pickles_of_dcp_whose_tools_read_them_too(
    tmp_path: Path,
) -> None:
    state = {
        "a": torch.arange(6, dtype=torch.float64).view(2, 3).t(),
        "b": torch.ones(2, dtype=torch.bfloat16),
        "c": torch.tensor(3),
        "d": torch.tensor([True, False]),
        "e": torch.empty(0, 4),
        "f": torch.arange(9, dtype=torch.uint8)[2:7],
    }
    write_tensors(dict(state), tmp_path)
    for read in (read_by_dcp, read_tensors):
        found = {
            key: torch.empty(item.size, dtype=item.properties.dtype)
            for key, item in read_tensor_metadata(tmp_path).items()
        }
        read(found, tmp_path)
        assert found.keys() == state.keys()
        assert [key for key in state if not torch.equal(found[key], state[key])] == []
        (tmp_path / ".metadata").unlink(missing_ok=True)


def read_by_dcp(state: StateDict, folder: Path) -> None:
    load(state, checkpoint_id=folder, no_dist=True)

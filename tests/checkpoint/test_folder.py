"""Folders of checkpoints: what is published is whole, what is kept, what is damaged is found."""

import pickle
import subprocess
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter, save

from mail_torchrec.checkpoint.folder import (
    CHECKSUMS,
    Checkpoints,
    checksum_error,
    read_checksums,
    sha256_of_files,
    write_checksums,
)
from mail_torchrec.checkpoint.storage import read_tensor_metadata, read_tensors


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


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


def test_metadata_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(
        ValueError, match=r"metadata of a checkpoint: it names builtins.print, which"
    ):
        read_tensor_metadata(tmp_path)
    assert capsys.readouterr().out == ""
    (tmp_path / ".metadata").write_bytes(b"\x80\x04cut")
    with pytest.raises(ValueError, match=r"cannot be read as the metadata of a checkpoint"):
        read_tensor_metadata(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_pickled_objects_are_refused_and_tensors_are_read(tmp_path: Path) -> None:
    state = {
        "a": torch.arange(6, dtype=torch.float64).view(2, 3),
        "b": torch.ones(2, dtype=torch.bfloat16),
    }
    save(dict(state), storage_writer=FileSystemWriter(tmp_path / "tensors"), no_dist=True)
    found = {
        key: torch.empty(item.size, dtype=item.properties.dtype)
        for key, item in read_tensor_metadata(tmp_path / "tensors").items()
    }
    read_tensors(found, tmp_path / "tensors")
    assert found.keys() == state.keys() and all(
        torch.equal(found[key], state[key]) for key in state
    )
    save(state | {"c": "text"}, storage_writer=FileSystemWriter(tmp_path / "more"), no_dist=True)
    with pytest.raises(ValueError, match=r"should hold tensors only, \['c'\] are something else"):
        read_tensor_metadata(tmp_path / "more")

"""Whole files are replaced or untouched; records wait for a disk that takes none."""

import errno
import os
from pathlib import Path

import pytest

from mail_torchrec.utils.run_files import AppendedFile, atomic_file, write_file


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.json"
    write_file(path, "old")
    return path


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_cannot_be_replaced_stays_and_the_error_names_it(
    old: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "replace", full)))
        with pytest.raises(OSError, match=rf"No space left on device: '{old}'"):
            write_file(old, "new")
    assert old.read_text() == "old" and list(old.parent.iterdir()) == [old]
    write_file(old, "new")
    assert old.read_text() == "new"


def test_an_error_while_a_file_is_made_leaves_the_old_one(old: Path) -> None:
    with pytest.raises(KeyError), atomic_file(old) as file:
        file.write(b"half")
        raise KeyError
    assert old.read_text() == "old" and list(old.parent.iterdir()) == [old]


def test_a_link_is_replaced_and_not_followed(old: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(old)
    write_file(link, "new")
    assert old.read_text() == "old" and not link.is_symlink()


def test_records_wait_while_a_disk_is_full_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A write that took half of a record is written over."""
    path, really = tmp_path / "new" / "metrics.jsonl", os.pwrite
    log = AppendedFile(path)
    log.append(b"1\n")

    def half_then_full(descriptor: int, data: memoryview, place: int) -> int:
        if len(data) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(descriptor, data[: len(data) // 2], place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half_then_full)
        log.append(b"second\n")
        log.append(b"third\n")
        assert log.size == 2
    told = capsys.readouterr().err
    assert told.count("cannot be written (No space left on device)") == 1
    log.append(b"4\n")
    log.close()
    assert path.read_bytes() == b"1\nsecond\nthird\n4\n" and log.size == len(path.read_bytes())
    assert "is written again, and complete" in capsys.readouterr().err


def test_records_that_were_never_taken_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(*arguments: object) -> int:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    log = AppendedFile(tmp_path / "a")
    log.append(b"12345")
    log.close()
    assert "lacks its last 5 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "kept"), [(0, b""), (2, b"1\n"), (99, b"1\n2\n")])
def test_what_stands_behind_the_known_end_is_cut_off(
    tmp_path: Path, size: int, kept: bytes
) -> None:
    (tmp_path / "a").write_bytes(b"1\n2\n")
    log = AppendedFile(tmp_path / "a", size)
    assert (tmp_path / "a").read_bytes() == kept
    log.append(b"x\n")
    assert (tmp_path / "a").read_bytes() == kept + b"x\n"

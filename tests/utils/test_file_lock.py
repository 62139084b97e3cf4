"""Two jobs on one folder."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mail_torchrec.utils.file_lock import LOCK, lock_folder

HOLD = """
import sys, time, pathlib
from mail_torchrec.utils.file_lock import LOCK, lock_folder
with lock_folder(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_job_is_refused_and_told_who_holds_the_folder_since_when(tmp_path: Path) -> None:
    process = holder(tmp_path / "new" / "run")
    try:
        who = rf"host {re.escape(socket.gethostname())}, pid {process.pid}, since 20\d\d-\d\d-\d\dT"
        said = rf"in use by another job \({who}.*nothing to delete"
        with pytest.raises(ValueError, match=said), lock_folder(tmp_path / "new" / "run"):
            pass
    finally:
        process.kill()


def test_a_killed_owner_blocks_nobody(tmp_path: Path) -> None:
    process = holder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path):  # and neither does one that ended well
        pass


def test_a_restart_waits_for_an_owner_that_is_about_to_end(tmp_path: Path) -> None:
    process = holder(tmp_path)
    start = time.monotonic()
    with pytest.raises(ValueError, match="in use"), lock_folder(tmp_path, timeout=1.5):
        pass
    assert time.monotonic() - start >= 1.5
    process.kill()  # not waited for
    with lock_folder(tmp_path, timeout=30):
        pass
    process.wait()


def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.raises(
            ValueError,
            match=r"cannot lock files \(Operation not supported\), so two jobs could write",
        ),
        lock_folder(tmp_path),
    ):
        pass


def test_a_lock_whose_file_was_deleted_still_holds(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        for change in (
            (tmp_path / LOCK).unlink,
            lambda: (tmp_path / LOCK).write_text("{}"),
        ):
            change()
            with pytest.raises(ValueError, match="in use by another job"), lock_folder(tmp_path):
                pass


def test_a_file_that_was_replaced_before_it_was_locked_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, replaced = fcntl.flock, []

    def flock(file: int, operation: int) -> None:
        really(file, operation)
        if not replaced:
            (tmp_path / LOCK).unlink()
            replaced.append(file)

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ValueError, match="in use"), lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == str(os.getpid())


@pytest.mark.parametrize(
    "content",
    [b"\x80garbage", b"", b"{", b"[1]", b"7", b"[" * 5000, b'{"host": "\\u001b[31m\\n"}', b"{}"],
)
def test_whatever_the_file_says_the_refusal_is_one_line(tmp_path: Path, content: bytes) -> None:
    with lock_folder(tmp_path):
        (tmp_path / LOCK).write_bytes(content)
        with pytest.raises(ValueError, match="in use by another job") as refused:
            with lock_folder(tmp_path):
                pass
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_plain_file_is_refused_and_nothing_is_written(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "other").write_text("mine")
    lock = tmp_path / "run" / LOCK
    lock.parent.mkdir()
    if kind == "link":
        lock.symlink_to(tmp_path / "other")
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with pytest.raises(ValueError, match=r"lock' should be a plain file"), lock_folder(lock.parent):
        pass
    assert (tmp_path / "other").read_text() == "mine"

"""Paths that a file names stay in its folder; only regular files are opened."""

import os
import socket
from pathlib import Path

import pytest

from mail_torchrec.utils.safe_paths import (
    check_plain_name,
    check_plain_path,
    open_regular,
    read_document,
)

OUTSIDE = ["", ".", "..", "/", "/etc/passwd", "../x", "a/../x", "a//b", "a/", "./a", "a/..", "a\0b"]


@pytest.mark.parametrize("name", [*OUTSIDE, "a\nb"])
def test_a_path_that_may_leave_the_folder_is_refused(name: str) -> None:
    for check in (check_plain_path, check_plain_name):
        with pytest.raises(ValueError, match="plain path inside its folder, received"):
            check(name)


def test_plain_paths_are_taken_as_they_are() -> None:
    for name in ("a", ".a", "a..b", "été 1", "...", "a\\b", "a:b"):
        assert check_plain_name(name) == check_plain_path(name) == name
    assert check_plain_path("tables/item.float32") == "tables/item.float32"
    with pytest.raises(ValueError, match="directly in the folder"):
        check_plain_name("tables/item.float32")


def test_only_regular_files_are_opened_and_none_is_waited_for(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("text")
    link.symlink_to(file)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "socket"))
    assert read_document(file) == read_document(link, follow_link=True) == "text"
    with pytest.raises(ValueError, match="should be a regular file"):
        open_regular(link)
    for name in ("pipe", "loop", "zero", "socket", "."):
        for follow_link in (False, True):
            with pytest.raises(ValueError, match="should be a regular file"):
                open_regular(tmp_path / name, follow_link=follow_link)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="should be UTF-8 text"):
        read_document(file)
    server.close()

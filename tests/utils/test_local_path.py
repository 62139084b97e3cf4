"""A URI does not become a folder of this machine, and an output is checked before the work."""

import os
import stat
from pathlib import Path

import pytest

from mail_torchrec.synthetic.writer import WorldSettings, write_world
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.atomic_dir import atomic_dir
from mail_torchrec.utils.file_lock import lock_folder
from mail_torchrec.utils.local_path import (
    check_local,
    check_output_dir,
    check_output_file,
    make_output_dir,
)

URIS = [
    "s3://bucket/runs/a",
    "s3a:/bucket/runs",
    "S3://bucket",
    "gs://bucket/runs",
    "hdfs://host:8020/runs",
    "abfss://container@account/runs",
    "simplecache::s3://bucket/runs",
    "file:///tmp/runs",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("uri", URIS)
def test_a_uri_is_refused_as_text_and_as_path(uri: str) -> None:
    for path in (uri, Path(uri)):
        with pytest.raises(ValueError, match=r"--out should be a path on this machine or .* a URI"):
            check_local(path, "--out")


def test_a_file_uri_is_refused_with_the_plain_path_as_the_remedy() -> None:
    for uri in ("file:///data/my%20runs", "file:/data/my runs", "file://localhost/data/my runs"):
        with pytest.raises(ValueError, match=r"give the path alone: /data/my runs$"):
            check_local(uri, "--out")


def test_no_more_than_the_scheme_is_shown() -> None:
    with pytest.raises(ValueError) as caught:
        check_local("s3://key:secret@bucket/path?token=secret", "--out")
    assert "secret" not in str(caught.value) and "(s3:...)" in str(caught.value)


@pytest.mark.parametrize(
    "path", ["runs/a", "/runs/a", "./s3:/a", "day=1/a", "a:b", "12:30/a", "C:/a", "~/a", "-", "."]
)
def test_a_local_path_is_none(path: str) -> None:
    check_local(path, "--out")


@pytest.mark.parametrize("uri", ["s3://bucket/a", "file:///nowhere/a"])
def test_no_function_makes_a_folder_of_a_uri(here: Path, uri: str) -> None:
    path = Path(uri)
    with pytest.raises(ValueError, match="a URI"):
        RunDir(path)
    with pytest.raises(ValueError, match="a URI"), atomic_dir(path):
        pass
    with pytest.raises(ValueError, match="a URI"), lock_folder(path):
        pass
    with pytest.raises(ValueError, match="a URI"):
        write_world(WorldSettings(users=10), path)
    with pytest.raises(ValueError, match="a URI"):
        make_output_dir(path)
    assert not list(here.iterdir())


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/a/b"):
        with pytest.raises(ValueError, match=rf"--out should be a folder, but '{tmp_path}/file'"):
            check_output_dir(path, "--out")
    with pytest.raises(ValueError, match=rf"--out: there is no folder '{tmp_path}/file'"):
        check_output_file(tmp_path / "file/a", "--out")


def test_an_output_file_needs_its_folder(tmp_path: Path) -> None:
    check_output_file(tmp_path / "a.csv", "--out")
    with pytest.raises(ValueError, match=rf"--out.* there is no folder '{tmp_path}/none'"):
        check_output_file(tmp_path / "none/a.csv", "--out")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="should be a file, received the folder"):
        check_output_file(tmp_path / "folder", "--out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    for check in (check_output_dir, check_output_file):
        with pytest.raises(ValueError, match=rf"--out: '{tmp_path}' may not be written"):
            check(tmp_path / "a", "--out")
    tmp_path.chmod(stat.S_IRWXU)

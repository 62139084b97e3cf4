"""Versions that are served and not on disk any more are told; faults of storage stop no scan."""

import os
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mail_torchrec.serve import command
from mail_torchrec.serve.version_folders import version_folders
from mail_torchrec.serve.versions import LOG, ModelVersions
from tests.serve.test_rollout import count, served
from tests.support.exported_models import version_in
from tools.served import publish, wait_for, write_manifest

TABLE = "tables/item.float32"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Catches the server's log."""
    LOG.addHandler(caplog.handler)
    yield caplog  # type: ignore[misc]
    LOG.removeHandler(caplog.handler)


def serving(versions: ModelVersions) -> str:
    return versions.choose("", None).manifest.version


def truncate(path: Path) -> None:
    os.truncate(path, 16)


def write_with_its_old_time(path: Path) -> None:
    """Writes other content of the same size, as `rsync --inplace --times` may."""
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [truncate, as_fifo, Path.unlink])
@pytest.mark.parametrize("name", [TABLE, "manifest.json", "golden.json", "model.onnx"])
def test_a_damaged_file_is_told_and_counted_in_the_next_scan(
    exported: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    publish(exported / "first", tmp_path / "ads")
    publish(exported / "second", tmp_path / "new")
    versions = served(tmp_path)
    damage(tmp_path / "new" / name)
    versions.refresh()
    is_deleted = name == "manifest.json" and damage is Path.unlink
    assert count(versions, "refused") == (0 if is_deleted else 1)
    if damage is truncate or is_deleted:  # of a mapping that would end the server
        assert serving(versions) == version_in(exported / "first") and len(versions.all) == 1
    versions.refresh()
    assert count(versions, "refused") == (0 if is_deleted else 1)  # once


def test_a_file_that_is_written_to_unloads_its_version_unless_it_is_the_last(
    exported: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    for name in ("first", "second"):
        publish(exported / name, tmp_path / name)
    versions = served(tmp_path)
    truncate(tmp_path / "second" / TABLE)
    versions.refresh()
    assert serving(versions) == version_in(exported / "first") and len(versions.all) == 1
    truncate(tmp_path / "first" / TABLE)
    versions.refresh()
    versions.refresh()
    assert len(versions.all) == 1 and count(versions, "changed") == 2
    assert f"were written to while it is served: {TABLE}; it is unloaded" in log.text
    assert "it is the last one and goes on, damaged" in log.text


def test_content_of_the_same_size_and_time_is_noticed(exported: Path, tmp_path: Path) -> None:
    publish(exported / "first", tmp_path / "ads")
    [before] = version_folders(tmp_path)
    write_with_its_old_time(tmp_path / "ads" / TABLE)
    [after] = version_folders(tmp_path)
    assert before.fingerprint != after.fingerprint
    (tmp_path / "ads").rename(tmp_path / "other")
    assert version_folders(tmp_path)[0].fingerprint == after.fingerprint


def test_a_private_copy_survives_whatever_happens_to_the_files(
    exported: Path, tmp_path: Path
) -> None:
    copies, root = tmp_path / "copies", tmp_path / "root"
    copies.mkdir()
    root.mkdir()
    publish(exported / "first", root / "ads")
    versions = served(root, copy_to=copies)
    assert list(copies.iterdir()) == []  # deleted, and mapped
    scorer = versions.choose("", None)
    for path in (root / "ads").rglob("*"):
        if path.is_file():
            truncate(path)
    versions.refresh()
    golden = exported / "first"
    shutil.rmtree(root / "ads")
    scorer.folder = golden
    scorer.check_golden()


def test_a_serving_version_without_a_folder_is_told_and_counted_once(
    exported: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    publish(exported / "first", tmp_path / "ads")
    versions = served(tmp_path)
    (tmp_path / "ads").rename(tmp_path / ".gone")
    for _ in range(2):
        versions.refresh()
    assert count(versions, "gone") == 1 and f"{tmp_path} has it no more" in log.text
    (tmp_path / ".gone").rename(tmp_path / "ads")
    versions.refresh()
    assert count(versions, "gone") == 1 and len(versions.all) == 1


def test_a_version_of_the_future_is_told(
    exported: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    publish(exported / "first", tmp_path / "now")
    versions = served(tmp_path)
    assert count(versions, "future") == 0
    publish(exported / "second", tmp_path / "2998")
    versions.refresh()
    assert count(versions, "future") == 1 and "was exported in the future (2998-01-01" in log.text
    assert serving(versions) == version_in(exported / "second")


def test_times_are_compared_as_times(exported: Path, tmp_path: Path) -> None:
    """An hour east of Greenwich a clock shows more, and is not later."""
    now = datetime.now(UTC) - timedelta(hours=5)
    later = (now + timedelta(minutes=10)).isoformat()
    earlier = now.astimezone(tz=None).replace(tzinfo=None).isoformat()
    shutil.copytree(exported / "first", tmp_path / "a")
    shutil.copytree(exported / "second", tmp_path / "b")
    write_manifest(tmp_path / "a", created=later)
    write_manifest(tmp_path / "b", created=f"{earlier[:19]}+00:00")
    assert serving(served(tmp_path)) == version_in(tmp_path / "a")
    write_manifest(tmp_path / "b", created="yesterday")
    with pytest.raises(ValueError, match="'created' should be a time in ISO 8601"):
        shutil.rmtree(tmp_path / "a")
        served(tmp_path)


def test_equal_times_are_ordered_alike_everywhere(exported: Path, tmp_path: Path) -> None:
    for names in (("a", "b"), ("b", "a")):
        root = tmp_path / "".join(names)
        root.mkdir()
        for name, source in zip(names, ("first", "second"), strict=True):
            shutil.copytree(exported / source, root / name)
            write_manifest(root / name, created="2020-01-01T00:00:00+00:00")
    found = {serving(served(tmp_path / root)) for root in ("ab", "ba")}
    assert len(found) == 1


def test_a_read_that_hangs_is_told_and_ends_no_polling(
    exported: Path, tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(exported / "first", tmp_path / "ads")
    versions = served(tmp_path)
    hanging, scans = threading.Event(), list[int]()

    def hang() -> list[str]:
        scans.append(1)
        assert hanging.wait(30)
        return []

    monkeypatch.setattr(versions, "refresh", hang)
    stop = command._start_watcher(versions, 0.05)
    wait_for(lambda: "what is loaded goes on serving" in log.text)  # counted before it is told
    assert count(versions, "stalled") == 1 and len(scans) == 1
    assert serving(versions) == version_in(exported / "first")
    monkeypatch.setattr(command, "_STALLED_SECONDS", 0.05)
    hanging.set()
    wait_for(lambda: len(scans) > 1)
    stop.set()

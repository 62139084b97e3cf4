"""What is published comes to a follower whole, or not at all."""

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mail_torchrec.inference.artifact_files import FileInfo, checksums
from mail_torchrec.publishing.command import publish
from mail_torchrec.publishing.follower import CURRENT, Follower, following
from mail_torchrec.publishing.pointer import LISTING, POINTER, Pointer, PublishedItem, extend_chain
from mail_torchrec.publishing.store import Store
from tests.support.exported_models import version_in
from tests.support.object_store import ObjectStore

TABLE = "tables/item.float32"


def follower_of(place: str, root: Path) -> Follower:
    root.mkdir(exist_ok=True)
    return Follower(Store.open(place, "--model"), root)


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def write(place: str, file: str, content: bytes) -> None:
    """Replaces a file of a published folder."""
    location = Store.open(place, "").location
    with location.filesystem.open_output_stream(f"{location.path.rstrip('/')}/{file}") as out:
        out.write(content)


def delete(place: str, file: str) -> None:
    location = Store.open(place, "").location
    location.filesystem.delete_file(f"{location.path.rstrip('/')}/{file}")


def table_of(place: str) -> str:
    """The largest table's file in the published folder."""
    pointer = Store.open(place, "").pointer()
    assert pointer is not None
    return f"{pointer.chain[-1].folder}/{TABLE}"


def test_a_follower_comes_to_each_version_that_is_published_and_back(
    exported: Path, tmp_path: Path, place: str
) -> None:
    follower = follower_of(place, tmp_path / "cache")
    in_use: list[str] = []
    for name in ("first", "second", "first"):
        published = publish(exported / name, place)
        version = version_in(exported / name)
        assert published.pointer.version == version
        follower.update(in_use)
        assert checksums(follower.root / CURRENT) == checksums(exported / name)
        assert folders(follower.root) == sorted({CURRENT, version, *in_use})
        in_use = [version]
    follower.update(in_use)
    assert folders(follower.root) == sorted([CURRENT, version])


def test_a_publication_that_was_killed_is_completed_and_copies_only_the_rest(
    exported: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(exported / "first", place)
    follower = follower_of(place, tmp_path / "cache")
    whole, copied = Store.upload, list[str]()

    def die(self: Store, source: Path, file: str, expected: FileInfo) -> bool:
        if len(copied) == 3:
            raise KeyboardInterrupt
        copied.append(file)
        return whole(self, source, file, expected)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "upload", die)
        with pytest.raises(KeyboardInterrupt):
            publish(exported / "second", place)
    follower.update()
    assert folders(follower.root) == sorted([CURRENT, version_in(exported / "first")])
    write(place, copied[1], b"half")  # an upload that ended within the file
    published = publish(exported / "second", place)
    assert published.num_files == len(checksums(exported / "second")) - 1
    assert publish(exported / "second", place).num_files == 0
    follower.update()
    assert checksums(follower.root / CURRENT) == checksums(exported / "second")


def damage(folder: str) -> None:
    """Puts other bytes in the place of a table's."""
    size = (Path(folder) / table_of(folder)).stat().st_size
    write(folder, table_of(folder), bytes(size))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (damage, "item.float32' is not the file that was published"),
        (
            lambda folder: write(folder, table_of(folder), b"x"),
            "is not the file that was published",
        ),
        (lambda folder: write(folder, table_of(folder), bytes(2**20)), "is not the file that was"),
        (
            lambda folder: delete(folder, table_of(folder)),
            "item.float32' is not there, and current",
        ),
        (lambda folder: delete(folder, table_of(folder).replace(TABLE, LISTING)), "is not there"),
    ],
    ids=["another content", "cut", "longer", "deleted", "no list"],
)
def test_damage_in_the_store_changes_nothing_and_is_repaired_by_publishing_again(
    exported: Path, tmp_path: Path, folder: str, fault: Callable[[str], Any], message: str
) -> None:
    publish(exported / "first", folder)
    follower = follower_of(folder, tmp_path / "cache")
    follower.update()
    publish(exported / "second", folder)
    fault(folder)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            follower.update()
    assert checksums(follower.root / CURRENT) == checksums(exported / "first")
    assert publish(exported / "second", folder).num_files == 1
    follower.update()
    assert checksums(follower.root / CURRENT) == checksums(exported / "second")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "current.json' is no pointer of format 1: .*JSON"),
        (b'{"format": 2, "chain": []}', "is no pointer of format 1"),
        (b'{"chain": []}', "is no pointer of format 1: chain"),
        (b"[" * 10**6, "is no pointer"),
    ],
)
def test_a_damaged_pointer_is_refused(
    exported: Path, tmp_path: Path, folder: str, content: bytes, message: str
) -> None:
    publish(exported / "first", folder)
    write(folder, POINTER, content)
    with pytest.raises(ValueError, match=message):
        follower_of(folder, tmp_path / "cache").update()
    with pytest.raises(ValueError, match=message):  # nor is it overwritten in silence
        publish(exported / "second", folder)


def test_a_place_without_a_pointer_is_told(tmp_path: Path, place: str) -> None:
    with pytest.raises(ValueError, match=r"it has no current\.json; publish a full export there"):
        follower_of(place, tmp_path / "cache").update()


def test_a_full_disk_loses_nothing_and_the_next_update_goes_on(
    exported: Path, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(exported / "first", folder)
    follower = follower_of(folder, tmp_path / "cache")
    follower.update()
    publish(exported / "second", folder)
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == TABLE.partition("/")[2]:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Path, "replace", full)
        follower.update()
    assert checksums(follower.root / CURRENT) == checksums(exported / "first")
    before = follower.num_bytes
    follower.update()
    assert checksums(follower.root / CURRENT) == checksums(exported / "second")
    whole = sum(info.bytes for info in checksums(exported / "second").values())
    assert 0 < follower.num_bytes - before < whole  # what had been downloaded was kept


def test_a_damaged_export_is_not_published(exported: Path, tmp_path: Path, folder: str) -> None:
    shutil.copytree(exported / "first", tmp_path / "bad")
    (tmp_path / "bad" / TABLE).write_bytes(b"x")
    with pytest.raises(ValueError, match="is not the file that was exported"):
        publish(tmp_path / "bad", folder)
    with pytest.raises(ValueError, match="should be what `mail-torchrec export` wrote"):
        publish(tmp_path, folder)
    assert not Store.open(folder, "").holds(POINTER)


def item(version: str, base: str | None = None) -> PublishedItem:
    listing = FileInfo(bytes=1, sha256=(version[0] * 64))
    return PublishedItem(
        kind="delta" if base else "model", version=version, base=base, listing=listing
    )


def test_a_delta_is_put_behind_the_version_it_was_made_of_alone() -> None:
    first = extend_chain("ads", None, item("a"))
    second = extend_chain("ads", first, item("b", "a"))
    assert [one.version for one in second.chain] == ["a", "b"] and second.version == "b"
    assert extend_chain("ads", second, item("b", "a")) == second  # twice: nothing to do
    third = extend_chain("ads", second, item("c", "b"))
    for wrong in (item("b", "a"), item("d", "b"), item("d", "e")):
        with pytest.raises(ValueError, match="and 'ads' is at version c"):
            extend_chain("ads", third, wrong)
    with pytest.raises(ValueError, match="'ads' holds no model yet"):
        extend_chain("ads", None, item("b", "a"))
    assert extend_chain("ads", third, item("a")) == first
    with pytest.raises(ValueError, match="chain should lead from a to c"):
        Pointer(chain=[item("a"), item("c", "b")])


def test_another_publication_meanwhile_is_told(
    exported: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(exported / "first", folder)
    other = Pointer(chain=[item("a")])
    upload = Store.upload

    def slow(self: Store, source: Path, file: str, expected: FileInfo) -> bool:
        if file.endswith(LISTING):
            self.write_pointer(other)
        return upload(self, source, file, expected)

    monkeypatch.setattr(Store, "upload", slow)
    with pytest.raises(ValueError, match="another job published to"):
        publish(exported / "second", folder)
    assert Store.open(folder, "").pointer() == other


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "--to should be a folder or a URI"),
        ("s4://bucket/ads", "Unrecognized filesystem type"),
        ("s3:/bucket/ads", "--to should be a path on this machine"),
        ("mock://ads", "whose writes are not atomic"),
    ],
)
def test_a_place_that_cannot_be_written_atomically_is_refused(
    exported: Path, place: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        publish(exported / "first", place)


def test_an_exported_model_is_no_place_to_publish_to(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "first", tmp_path / "model")
    with pytest.raises(ValueError, match="is an exported model; choose another"):
        publish(exported / "second", str(tmp_path / "model"))


def test_no_connection_and_no_access_are_told_apart_and_show_no_secret(
    exported: Path, store: ObjectStore
) -> None:
    changes = {
        ("@clicks", "@nobucket"): "NO_SUCH_BUCKET.*correct the bucket's name",
        (store.key, "AKIAUNKNOWN"): "check the credentials",
        (f":{store.port}", ":9"): "check the network",
    }
    for change, message in changes.items():
        uri = store.uri("ads").replace(*change)
        with pytest.raises(ValueError, match=message) as error:
            publish(exported / "first", uri)
        for secret in (store.secret, store.escaped_secret):
            assert secret not in str(error.value)


@pytest.fixture
def cached(exported: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A place, and the cache of a follower that has ended."""
    place, cache = str(tmp_path / "published"), tmp_path / "cache"
    publish(exported / "first", place)
    with following(place, cache) as follower:
        assert follower is not None
        follower.update()
    yield place, cache


def test_a_cache_is_kept_and_belongs_to_one_server_and_one_place(
    exported: Path, tmp_path: Path, cached: tuple[str, Path]
) -> None:
    place, cache = cached
    with following(place, cache) as follower:
        assert follower is not None
        follower.update()
        assert follower.num_bytes == 0
        with pytest.raises(ValueError, match="is in use by another job"), following(place, cache):
            pass
    with pytest.raises(ValueError, match="has the versions of"), following("file:///x", cache):
        pass
    with (
        pytest.raises(ValueError, match="--cache should be an empty folder"),
        following(place, tmp_path),
    ):
        pass
    with pytest.raises(ValueError, match="leave it out"), following(str(exported), cache):
        pass

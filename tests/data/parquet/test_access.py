"""Files that cannot be read: damage, and everything that is none."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mail_torchrec.data.parquet.access import unreadable_file
from mail_torchrec.data.parquet.files import parquet_files

DAMAGE = "cannot be read as Parquet (truncated, damaged"


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(1).integers(0, 1000, 4000)
    pq.write_table(pa.table({"x": numbers}), path, row_group_size=1000, compression="zstd")


@pytest.fixture
def someone_else(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A function that gives up root's rights, which end with the test."""
    user = os.geteuid()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == user and folder.name.startswith(("pytest-", "popen-", "test_")):
            folder.chmod(folder.stat().st_mode | 0o055)
    yield lambda: os.seteuid(65534) if user == 0 else None
    os.seteuid(user)
    for path in tmp_path.rglob("*"):
        path.chmod(0o755)


@pytest.mark.parametrize(
    ("mode", "of", "named"),
    [
        (0o000, "data/a.parquet", "data"),  # the file may not be read
        (0o000, "data/day", "data"),  # a folder below may not be listed
        (0o444, "data/day", "data"),  # or not be entered
        (0o000, "data", "data"),
        (0o444, "data", "data/a.parquet"),
    ],
)
def test_missing_permission_is_no_damage(
    mode: int, of: str, named: str, tmp_path: Path, someone_else: Callable[[], None]
) -> None:
    for name in ("data/a.parquet", "data/day/b.parquet"):
        write(tmp_path / name)
    (tmp_path / of).chmod(mode)
    someone_else()
    with pytest.raises(ValueError, match=r"cannot be read: .*Permission denied") as error:
        parquet_files(f"{tmp_path}/{named}", "")[0].read(["x"])
    assert "permission is missing: let this user read the file (r)" in str(error.value)


def test_permission_that_is_lost_later_and_deleted_files_are_no_damage(
    tmp_path: Path, someone_else: Callable[[], None]
) -> None:
    for name in ("a.parquet", "b.parquet"):
        write(tmp_path / name)
    lost, deleted = parquet_files(str(tmp_path), "")
    (tmp_path / "b.parquet").unlink()
    (tmp_path / "a.parquet").chmod(0)
    someone_else()
    for read in (lambda: lost.read(["x"], 1), lambda: lost.schema, lambda: lost.row_groups):
        with pytest.raises(ValueError, match=r"a\.parquet cannot be read: .*permission is missing"):
            read()
    for read in (lambda: deleted.read(["x"]), lambda: next(deleted.batches(["x"], 5))):
        with pytest.raises(ValueError, match=r"b\.parquet cannot be read: .*not there \(any more"):
            read()


def damaged_page(content: bytearray) -> bytearray:
    content[200:1200] = b"\xff" * 1000
    return content


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-9], lambda content: b"", lambda content: b"id,x\n1,2\n" * 9],
)
def test_a_file_that_is_no_parquet_is_damage(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    write(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(damage((tmp_path / "a.parquet").read_bytes()))
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        _ = parquet_files(str(tmp_path), "")[0].schema


@pytest.mark.parametrize("damage", [damaged_page, lambda content: content[:2000]])
def test_damage_of_pages_is_damage(
    damage: Callable[[bytearray], bytearray], tmp_path: Path
) -> None:
    write(tmp_path / "a.parquet")
    (file,) = parquet_files(str(tmp_path), "")
    assert file.num_rows == 4000  # the footer is read
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    (tmp_path / "a.parquet").write_bytes(damage(content))
    for read in (lambda: file.read(["x"]), lambda: list(file.batches(["x"], 10))):
        with pytest.raises(ValueError, match="cannot be read as Parquet"):
            read()


STORE = "When reading information for key 'a' in bucket 'b': AWS Error "


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(STORE + "ACCESS_DENIED during HeadObject"), "AWS_ACCESS_KEY_ID"),
        (OSError(STORE + "SIGNATURE_DOES_NOT_MATCH during ListObjectsV2"), "AWS_ACCESS_KEY_ID"),
        (OSError(STORE + "UNKNOWN: ExpiredToken: The token has expired"), "AWS_ACCESS_KEY_ID"),
        (OSError("google::cloud::Status(PERMISSION_DENIED: no)"), "credentials"),
        (OSError(STORE + "NO_SUCH_BUCKET during ListObjectsV2"), "the bucket's name"),
        (OSError(STORE + "UNKNOWN (HTTP status 301) during HeadObject"), "region=..."),
        (OSError("x. Looks like the configured region is 'a' while"), "region=..."),
        (OSError(STORE + "NETWORK_CONNECTION: curlCode: 6, resolve"), "endpoint_override"),
        (OSError("google::cloud::Status(UNAVAILABLE: x)"), "endpoint_override"),
        (OSError(STORE + "UNKNOWN (HTTP status 500) during HeadObject"), "the store's answer"),
        (OSError(errno.EIO, "Input/output error"), "try again"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "endpoint_override"),
        (RuntimeError("botocore: Unable to locate credentials"), "credentials"),
        (RuntimeError("of some file system"), "try again"),
        (pa.ArrowMemoryError("malloc of size 10 failed"), "not enough memory"),
        (pa.ArrowNotImplementedError("codec 'lzo' not built"), "plainer settings"),
        (OSError("Unable to load libjvm\ndlopen\ndlopen"), "JAVA_HOME"),
    ],
)
def test_what_is_no_damage_is_not_called_so(error: Exception, remedy: str) -> None:
    message = str(unreadable_file("s3://b/a", error))
    assert message.startswith("s3://b/a cannot be read: ") and DAMAGE not in message
    assert remedy in message and "\n" not in message


@pytest.mark.parametrize(
    "error",
    [
        pa.ArrowInvalid("Parquet magic bytes not found in footer. Connection refused"),
        OSError("Couldn't deserialize thrift: TProtocolException: Invalid data"),
        OSError("Unexpected end of stream: Page was smaller (5) than expected (50)"),
    ],
)
def test_what_arrows_reader_finds_is_damage(error: Exception) -> None:
    assert DAMAGE in str(unreadable_file("a", error))


class Refusing(MemoryFileSystem):
    """A file system whose library has errors of its own."""

    protocol = ("refusing",)

    def info(self, path: str, **_: object) -> dict[str, object]:
        raise RuntimeError(f"403 Forbidden: https://me:hidden@host{path}?sig=hidden")


def test_errors_of_any_library_are_messages_without_its_secrets() -> None:
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    with pytest.raises(ValueError, match="'fsspec\\+refusing://x/y' cannot be read") as error:
        parquet_files("fsspec+refusing://x/y", "")
    assert "check the credentials" in str(error.value) and "hidden" not in str(error.value)

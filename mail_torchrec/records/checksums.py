"""Checksums of files, and the list of them that stands in a folder: ``SHA256SUMS``."""

import errno
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from mail_torchrec.utils.run_files import named_errors, write_file
from mail_torchrec.utils.safe_paths import (
    check_plain_name,
    check_plain_path,
    open_regular,
    read_document,
)

CHECKSUMS = "SHA256SUMS"
"""List of a folder's files with their checksums, in the format of ``sha256sum --check``."""


def sha256(path: Path) -> str:
    """Computes the SHA-256 of a regular file."""
    with named_errors(path), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Computes the checksums of files, by name."""
    return {name: sha256(folder / name) for name in names}


def write_checksums(folder: Path, checksums: dict[str, str]) -> None:
    """Writes the list of checksums; after all other files."""
    lines = (f"{checksums[name]}  {name}\n" for name in sorted(checksums))
    write_file(folder / CHECKSUMS, "".join(lines))


def read_checksums(folder: Path, *, nested: bool = False) -> dict[str, str]:
    """Reads the list of checksums, by file name.

    Args:
        folder: holds the list.
        nested: whether it lists files of folders below, too.

    Raises:
        ValueError: the list is missing or damaged.
        OSError: it cannot be read.
    """
    try:
        text = read_document(folder / CHECKSUMS)
    except FileNotFoundError as error:
        check_missing(folder, CHECKSUMS)
        raise ValueError(f"{folder / CHECKSUMS} is missing") from error
    except ValueError as error:
        raise ValueError(f"{folder / CHECKSUMS} cannot be read: {error}") from error
    found = re.findall(r"([0-9a-f]{64})  ([^\n]+)\n", text)
    whole = "".join(f"{checksum}  {name}\n" for checksum, name in found) == text
    check_name = check_plain_path if nested else check_plain_name
    checksums = {check_name(name): checksum for checksum, name in found}
    if not found or not whole or len(checksums) < len(found):
        raise ValueError(
            f"{folder / CHECKSUMS} should have a checksum and a file name in each line, and each "
            "name once; it is damaged"
        )
    return checksums


def checksum_error(folder: Path, name: str, expected: str) -> str | None:
    """Compares a file with its checksum; describes the fault, or returns None.

    Raises:
        OSError: the file is there, or its folder is not, and cannot be read.
    """
    try:
        received = sha256(folder / name)
    except FileNotFoundError:
        check_missing(folder, name)
        return f"{folder / name} is missing"
    except ValueError as error:
        return str(error)
    return (
        None
        if received == expected
        else f"{folder / name} should have the SHA-256 {expected}, it has {received}"
    )


def check_missing(folder: Path, name: str) -> None:
    """Confirms that a folder lacks a file that could not be opened.

    Network storage may deny for a moment a file or a folder that was just made.

    Raises:
        OSError: the folder names the file, or is not there itself.
    """
    if name in os.listdir(folder):
        raise OSError(errno.ESTALE, "it is listed and cannot be opened", str(folder / name))

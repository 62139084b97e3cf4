"""Paths that a file names, and the opening of files that somebody else may have laid.

The one place that both checks: manifests, lists of checksums and indices name files by it, and
checkpoints and exported models are opened by it.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from mail_torchrec.utils.run_files import named_errors

_MAX_DOCUMENT = 2**28
"""Most bytes of a document, which is read into memory as a whole."""


def check_plain_path(name: str) -> str:
    """Checks that a path leads to a place below the folder whose file names it; returns the path.

    Raises:
        ValueError: it is absolute, climbs by ``..``, or has empty parts or control characters.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(ord(c) < 32 for c in name):
        raise ValueError(
            f"a file should be named by a plain path inside its folder, received {name!r}"
        )
    return name


def check_plain_name(name: str) -> str:
    """Checks that a name is that of a file directly in the folder; returns the name.

    Raises:
        ValueError: it has more than one part, or as :func:`check_plain_path`.
    """
    if "/" in check_plain_path(name):
        raise ValueError(f"a file should be directly in the folder, received {name!r}")
    return name


PlainPath = Annotated[str, AfterValidator(check_plain_path)]
"""Path of a file inside the folder whose file names it."""
PlainName = Annotated[str, AfterValidator(check_plain_name)]
"""Name of a file directly in the folder whose file names it."""


def open_regular(path: Path, *, follow_link: bool = False) -> BufferedReader:
    """Opens a regular file for reading; opening anything else could wait for ever, or act.

    Args:
        path: the file.
        follow_link: whether the file may be a link to a regular file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is a link, folder, pipe, socket or device.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_link else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link that is not followed; a socket
            raise _not_regular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return os.fdopen(descriptor, "rb")


def read_document(path: Path, *, follow_link: bool = False) -> str:
    """Reads a regular file of text.

    Args:
        path: the file.
        follow_link: whether the file may be a link to a regular file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, too large for a document, or no UTF-8.
    """
    with named_errors(path), open_regular(path, follow_link=follow_link) as file:
        content = file.read(_MAX_DOCUMENT + 1)
    if len(content) > _MAX_DOCUMENT:
        raise ValueError(f"'{path}' should have at most {_MAX_DOCUMENT >> 20} MiB; it is damaged")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' should be UTF-8 text: {error}") from error


def _not_regular(path: Path) -> ValueError:
    return ValueError(
        f"'{path}' should be a regular file, it is a link, folder, pipe, socket or device; copy "
        "the file itself there"
    )

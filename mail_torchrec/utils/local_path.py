"""Paths that have to lie on this machine, or on storage that is mounted here.

``pathlib`` takes a URI for a relative path: without a check, ``s3://bucket/run`` becomes the folder
``s3:/bucket/run`` below the current one.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

_URI = re.compile(r"([A-Za-z][\w+.:-]+):/")


def check_local(path: Path | str, name: str) -> None:
    """Refuses a URI.

    Args:
        path: path or URI; a local folder that looks like one can be given as ``./s3:/folder``.
        name: option or setting that it was given by.

    Raises:
        ValueError: it is a URI; only its scheme is shown, since the rest may hold a secret.
    """
    if (match := _URI.match(str(path))) is None:
        return
    remedy = "give a local path, or mount that storage and give the path where it is mounted"
    if match[1].lower() == "file":
        remedy = f"give the path alone: {unquote(urlsplit(str(path)).path)}"
    raise ValueError(
        f"{name} should be a path on this machine or on storage mounted here, received a URI "
        f"({match[1]}:...); {remedy}"
    )


def check_output_dir(path: Path, name: str) -> None:
    """Checks that a folder can be written, or created with the folders above it.

    Args:
        path: the folder.
        name: option that it was given by.

    Raises:
        ValueError: it is a URI or a file, lies below a file, or may not be written.
    """
    check_local(path, name)
    nearest = next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))
    if not nearest.is_dir():
        raise ValueError(f"{name} should be a folder, but '{nearest}' is a file; choose another")
    _check_writable(nearest, name)


def make_output_dir(path: Path) -> None:
    """Creates a folder, and the folders above it, where they are missing.

    Raises:
        ValueError: as :func:`check_output_dir`.
    """
    check_output_dir(path, "the folder to write")
    path.mkdir(parents=True, exist_ok=True)


def check_output_file(path: Path, name: str) -> None:
    """Checks that a file can be written.

    Args:
        path: the file; it may exist.
        name: option that it was given by.

    Raises:
        ValueError: it is a URI or a folder, or its folder does not exist or may not be written.
    """
    check_local(path, name)
    if path.is_dir():
        raise ValueError(f"{name} should be a file, received the folder '{path}'")
    if not path.parent.is_dir():
        raise ValueError(f"{name}: there is no folder '{path.parent}' for '{path}'; create it")
    _check_writable(path.parent, name)


def _check_writable(folder: Path, name: str) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: '{folder}' may not be written by this user; choose another")

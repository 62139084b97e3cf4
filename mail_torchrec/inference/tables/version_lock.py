"""Locks by which the readers of a version keep its rows until they have gone.

A version's rows lie in files that later versions are written into (``table_rows.py``). Whoever
reads a version holds a shared lock of the kernel on its manifest; its rows are free only where
nobody does. A lock ends with its process, however that ends.
"""

import fcntl
import os
import weakref
from pathlib import Path

from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)


class VersionLock:
    """Shared lock on a version, held as long as this object lives.

    Args:
        manifest: manifest of the version.

    Raises:
        ValueError: the version is being removed.
        OSError: the manifest cannot be opened.
    """

    def __init__(self, manifest: Path) -> None:
        descriptor = os.open(manifest, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"'{manifest.parent}' is being removed, as newer versions have taken its place"
            ) from error
        except OSError as error:
            logger.warning(
                "'%s' cannot be locked (%s): while it is read, `apply` there may reuse its rows; "
                "keep versions on a file system with locks",
                manifest.parent,
                error.strerror,
            )
        if not manifest.exists() or not os.path.samestat(os.fstat(descriptor), manifest.stat()):
            raise ValueError(f"'{manifest.parent}' was removed while it was opened")


def is_read(manifest: Path) -> bool:
    """Tells if somebody holds a lock on a version, or may, as its file system has no locks."""
    descriptor = os.open(manifest, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)

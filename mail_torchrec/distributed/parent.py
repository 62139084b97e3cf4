"""Processes that end with the process that started them, however that ends (Linux)."""

import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "MAIL_TORCHREC_PARENT"
"""Environment variable by which a process asks a child to end with it: its own process id."""

_PR_SET_PDEATHSIG = 1
_imported_by = os.getpid(), os.getppid()  # soon after this process began


def kill_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends.

    Also while this process is stopped or waits for a lock, where a thread of its own that watches
    the parent would not run. A child of this process does not inherit the request.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            number = ctypes.get_errno()
            raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")


def is_orphan() -> bool:
    """Returns whether this process is a fork whose parent, which imported this module, has ended.

    The kernel does not kill it with its parent then, for it was asked too late.
    """
    importer = _imported_by[0]
    return importer not in (os.getpid(), os.getppid())


def kill_with_launcher() -> None:
    """Ends this process with torchrun, or with the process that asks by ``PARENT_VARIABLE``.

    Without either, as under nohup or Slurm, it may outlive whoever started it.
    """
    asked_by = os.environ.pop(PARENT_VARIABLE, None)
    if asked_by is None and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    kill_with_parent()
    this, launcher = _imported_by
    if asked_by is not None:
        launcher = int(asked_by)
    elif this != os.getpid():  # a fork of the process that imported this module
        launcher = os.getppid()
    if os.getppid() != launcher:  # it ended before the kernel was asked
        sys.stderr.write("Error: the launcher is gone (killed, or its host)\n")
        sys.stderr.flush()
        os._exit(1)

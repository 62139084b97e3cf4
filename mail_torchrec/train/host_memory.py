"""How the C library deals with the memory of a step on a CPU."""

import ctypes
import platform

# mallopt's names in malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Has glibc give freed memory to the next tensor instead of back to the system; other C libraries are left alone.

    By default each tensor of some megabytes is mapped anew, and the system clears every page of it
    at the first touch: a third of a grouped step's time on a CPU. The process then stays as large
    as it ever was.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

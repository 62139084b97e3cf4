"""Settings of the C library's memory allocator."""

import ctypes
import platform

# Names of mallopt's parameters in malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory instead of giving it back to the operating system.

    By default each tensor of some megabytes is mapped anew, and the system clears all of its memory
    pages at the first access: a third of a grouped step's time on a CPU. The process then stays as
    large as it ever was. Other C libraries are left unchanged.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Makes glibc give freed memory back once; other C libraries are left alone."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)

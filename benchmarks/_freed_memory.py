"""Large results of one size, made again and again, in memory that the process already has."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> str:
    """Tell the C library to keep what is freed, and say what was reached.

    Otherwise each large result is made of new pages. On a virtual machine whose host takes back what is free, to touch
    64 MiB of them for the first time took 6 to 200 ms here, by chance, where the kernel that fills them takes 8.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        return "as the system has it"
    # From malloc.h. Without M_MMAP all memory comes from one heap, of which 2 GiB may be free at its end.
    trim_threshold, mmap_max = -1, -4
    kept = libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1)
    return "glibc, which keeps freed memory" if kept else "as the system has it"

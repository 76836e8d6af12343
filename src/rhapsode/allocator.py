"""Freed memory stays with the process, so that the next training step finds it where the last one left it."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's names and numbers, malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Tells glibc not to give freed memory back to the system; does nothing where there is another C library.

    A training step frees what the next one asks for again. glibc by itself returns the larger pieces in between,
    and the system hands them out anew page by page, each filled with zeros first.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_MMAP_MAX, 0)  # large pieces come from the heap too, which is not trimmed

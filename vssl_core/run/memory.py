"""The C library's allocator, set for training on a CPU."""

from __future__ import annotations

import ctypes
import ctypes.util

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of glibc's mallopt


def keep_pages() -> bool:
    """Let glibc keep freed memory instead of giving large tensors back to the kernel in each step; whether it listened.

    Otherwise each step pays the page faults of all its activations again, up to 1.4 times the time of the step.
    """
    try:
        mallopt = ctypes.CDLL(ctypes.util.find_library("c")).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    return all([mallopt(name, value) for name, value in settings])

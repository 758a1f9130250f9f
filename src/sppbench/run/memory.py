"""How the C library hands out memory to a training on the CPU."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Lets this process keep memory that is freed, for the next allocation; returns whether that could be set.

    Large tensors otherwise come from the system each time, and go back to it: in every training step the system fills
    hundreds of megabytes with zeros, page by page, before they are written to. The process then keeps its
    peak memory to its end, the gaps between blocks in use included. No number changes. Only glibc allows it.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    # Never from the system directly; never back to it (-1 is the largest size there is).
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))

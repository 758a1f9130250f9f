"""Memory kept between steps, as a run on the CPU has it, or handed back to the system, as the C library does it."""

import ctypes

from sppbench.allocator import keep_freed_memory

# Of glibc's malloc.h: the largest thresholds that it comes to by itself once blocks so large have been freed.
_DEFAULTS = {-4: 65536, -3: 32 << 20, -1: 64 << 20}


def keep_memory(kept: bool) -> None:
    """Switches this process; where the C library knows no such thing, nothing changes."""
    if kept:
        keep_freed_memory()
    elif hasattr(ctypes.CDLL(None), "mallopt"):
        for parameter, value in _DEFAULTS.items():
            ctypes.CDLL(None).mallopt(parameter, value)

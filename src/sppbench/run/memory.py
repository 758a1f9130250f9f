"""How the system hands out memory to a training on the CPU."""

from __future__ import annotations

import ctypes
import importlib
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_MAPS = Path("/proc/self/maps")


def prepare_memory() -> None:
    """Does for a process that trains on the CPU what saves time there and changes no number."""
    keep_freed_memory()
    map_constants()


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


def map_constants() -> int:
    """Reads a byte of each page of the constants in PyTorch's library for the CPU; returns the number of pages.

    With AVX-512, exponential functions (SELU, SiLU, softmax) read constants for special values under a mask, which is
    empty as a rule. If no one has touched the page of a constant before, an AMD EPYC takes some 150 ns to find out that
    nothing is to be read. The page is not fetched, as nothing was read, and so each of the next reads takes as long:
    SELU takes twelve times the time, in the whole process; on an Intel Xeon 1.3 times. A plain read fetches the page.
    It takes 10 ms and 45 MiB, which all processes share. No number changes. Linux only; 0 elsewhere.
    """
    if sys.platform != "linux":
        return 0
    importlib.import_module("torch")  # without which there is no library
    return sum(
        # A slice reads one byte of each page, in C.
        len((ctypes.c_char * (end - start)).from_address(start)[:: mmap.PAGESIZE])
        for start, end in _constants()
    )


def _constants() -> Iterator[tuple[int, int]]:
    """Addresses at which read-only parts of PyTorch's library begin and end."""
    try:
        lines = _MAPS.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:  # "7f2a00000000-7f2a02a00000 r--p 00000000 08:01 1234 /.../libtorch_cpu.so"
        addresses, permissions, *_ = line.split()
        if permissions == "r--p" and line.endswith("/libtorch_cpu.so"):
            start, end = addresses.split("-")
            yield int(start, 16), int(end, 16)

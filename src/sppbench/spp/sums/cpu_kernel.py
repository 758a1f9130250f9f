"""Compiles kernel.c with the system's compiler, once for a machine, and calls it; without it torch forms the sums."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import Tensor

from sppbench.spp.sums.batched import TAIL

log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, int], Tensor | None]

SOURCE = Path(__file__).with_name("kernel.c")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC")
# Elements from which the kernel may run in threads; as there.
_PARALLEL = 1 << 16
# That run threads, as torch's OpenMP offers them; each as GNU's does, for the sake of programs compiled with GCC.
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")

# What /proc/cpuinfo calls the kind of a processor and what it can do, on x86, Arm, POWER, RISC-V and S/390.
_PROCESSOR = "vendor_id, cpu family, model, flags, CPU implementer, CPU part, CPU variant, Features, cpu, isa, features"


@functools.cache
def kernel() -> Kernel | None:
    """``channel_sums`` for float32 on the CPU, compiled on the first call; None where that is not possible.

    The function takes a tensor of at least one axis, detached, and its channel axis, not negative. It returns what
    :func:`sppbench.spp.sums.statistics.channel_sums` does; None for other types, for tensors that have gaps in
    memory, and for empty ones.
    """
    if sys.platform not in ("linux", "darwin"):
        return None
    try:
        return _bind(_library())
    except Exception as error:  # whatever is missing, sums can be formed without
        log.debug("channel sums are computed by torch, as there is no compiled kernel: %s", error)
        return None


def _bind(library: ctypes.CDLL) -> Kernel:
    sums = library.channel_sums
    sums.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_int, ctypes.c_void_p]
    library.use_openmp.argtypes = [ctypes.c_void_p] * len(_OPENMP)
    library.use_openmp.restype = None
    if functions := _openmp():
        library.use_openmp(*functions)
    float32, float64, cpu, tail = torch.float32, torch.float64, torch.device("cpu"), len(TAIL)

    def channel_sums(x: Tensor, axis: int) -> Tensor | None:
        # This runs at every layer, for small tensors at its own cost: each call here is seen in a step.
        if type(x) is not Tensor or x.dtype is not float32 or x.layout is not torch.strided or x.is_neg():
            return None
        inner = inner_size(x, axis)
        if inner is None:
            return None
        shape, number = x.shape, x.numel()
        channels = shape[axis]
        try:
            address = x.data_ptr()
        except RuntimeError:  # there is no memory behind what a transformation of functions traces
            return None
        if not address:  # it has no elements, or is known to be zero
            return None
        out = torch.empty(channels + tail, dtype=float64, device=cpu)
        threads = torch.get_num_threads() if number >= _PARALLEL else 1
        outer = number // (channels * inner)
        failed = sums(address, outer, channels, inner, shape[0], threads, out.data_ptr())
        return None if failed else out

    return channel_sums


def inner_size(x: Tensor, axis: int) -> int | None:
    """Number of elements of a channel that lie side by side; None if there are gaps between the elements of ``x``.

    Whatever the order of the other axes is: those with larger strides are in front, those with smaller behind.
    """
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)) or _is_dense(x):
        return x.stride(axis) if x.shape[axis] > 1 else x.numel()
    return None


def _is_dense(x: Tensor) -> bool:
    """Whether some order of its axes makes it contiguous."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _openmp() -> list[int] | None:
    """Addresses of the functions that run threads, in the very OpenMP that torch uses: a second one would have threads
    of its own, which wait in busy loops and take the cores from torch's."""
    torch_itself = ctypes.CDLL(torch._C.__file__)  # a name is looked up in what it depends on, too
    try:
        found = [ctypes.cast(getattr(torch_itself, name), ctypes.c_void_p).value for name in _OPENMP]
    except AttributeError:
        log.debug("channel sums are computed in one thread: torch was built without OpenMP")
        return None
    return [address for address in found if address is not None]


def _library() -> ctypes.CDLL:
    """Loads the compiled kernel from the user's cache, where it is put if need be.

    A file's name has a hash of what it was made of, for machines that share a home, and one of its content, for damage.
    What others could have written is not loaded: in a cache that is not private the kernel is not kept, but compiled by
    each process in a temporary folder of its own.

    Raises:
        RuntimeError: It does not compile.
        OSError: It cannot be written anywhere, or not be loaded.
    """
    compiler = _compiler()
    stem = f"kernel-{_hash(*_ingredients(compiler))}"
    folder = user_cache_path("sppbench") / "kernel"
    for path in sorted(folder.glob(f"{stem}-*.so")) if _is_private(folder) else ():
        if _is_private(path) and path.stem == f"{stem}-{_hash(path.read_bytes())}":
            with suppress(OSError):  # as where another C library is used
                return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory(prefix="sppbench-") as temporary:
        made = Path(temporary, "kernel.so")
        _compile(compiler, made)
        try:
            return ctypes.CDLL(str(_keep(made, folder, stem)))
        except OSError as error:
            log.debug("the compiled kernel could not be cached: %s", error)
            return ctypes.CDLL(str(made))  # stays loaded when its file is gone


def _is_private(path: Path) -> bool:
    """Whether a file or folder is this user's own, writable by nobody else, and no symbolic link."""
    try:
        status = path.lstat()
    except OSError:
        return False
    is_itself = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
    return is_itself and status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compiler() -> list[str]:
    """A C compiler's command, its file first.

    Raises:
        RuntimeError: There is none.
    """
    for command in (shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]):
        if command and (found := shutil.which(command[0])):
            return [found, *command[1:]]
    raise RuntimeError("there is no C compiler")


def _ingredients(compiler: Sequence[str]) -> Iterator[bytes]:
    """What a compiled kernel depends on: source, flags, compiler, and the processor that it is for."""
    yield SOURCE.read_bytes()
    file = Path(compiler[0]).resolve()
    yield repr((FLAGS, compiler[1:], str(file), file.stat().st_size, file.stat().st_mtime_ns)).encode()
    yield f"{sys.platform} {platform.machine()}".encode()
    try:
        with Path("/proc/cpuinfo").open() as lines:
            first_core = itertools.takewhile(str.strip, lines)
            yield "".join(
                line for line in first_core if line.partition(":")[0].strip() in _PROCESSOR.split(", ")
            ).encode()
    except OSError:
        yield platform.node().encode()


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(compiler: Sequence[str], target: Path) -> None:
    command = [*compiler, *FLAGS, "-o", str(target), str(SOURCE)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip()}")


def _keep(made: Path, folder: Path, stem: str) -> Path:
    """Copies a compiled kernel into the cache, whole or not at all, and returns where it is.

    Raises:
        OSError: It cannot be written there, or others could change it there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # whatever the umask
    if not _is_private(folder):
        raise PermissionError(f"{folder} is not private: it must be the user's own, and writable by nobody else")
    path = folder / f"{stem}-{_hash(made.read_bytes())}.so"
    handle, part = tempfile.mkstemp(prefix=f"{stem}-", suffix=".part", dir=folder)
    try:
        os.close(handle)
        Path(part).write_bytes(made.read_bytes())
        Path(part).replace(path)
    finally:
        Path(part).unlink(missing_ok=True)
    return path

"""The compiled kernel against an independent computation in double precision, and what happens where it is missing."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sppbench.spp.sums import cpu_kernel as kernel_module
from sppbench.spp.sums.batched import TAIL
from sppbench.spp.sums.cpu_kernel import Kernel, kernel
from sppbench.spp.sums.statistics import channel_sums
from tests.processes import start

REST = len(TAIL)  # what stands behind the sums of channels

needs_compiler = pytest.mark.skipif(
    sys.platform not in ("linux", "darwin") or not any(map(kernel_module.shutil.which, ("cc", "gcc", "clang"))),
    reason="there is no C compiler",
)


@pytest.fixture
def compiled() -> Kernel:
    """The kernel; that there is none, although there is a compiler, is an error."""
    found = kernel()
    assert found is not None
    return found


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and no kernel loaded yet."""
    monkeypatch.setattr(kernel_module, "user_cache_path", lambda name: tmp_path / "caches" / name)
    kernel.cache_clear()
    yield tmp_path / "caches" / "sppbench" / "kernel"
    kernel.cache_clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled kernel."""
    path = tmp_path_factory.mktemp("made") / "kernel.so"
    kernel_module._compile(kernel_module._compiler(), path)
    return path


@pytest.fixture
def in_no_time(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes most of a second is done already: the kernel is compiled."""
    monkeypatch.setattr(kernel_module, "_compile", lambda compiler, target: shutil.copy(made, target))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def expected(x: Tensor, axis: int) -> list[float]:
    """What the kernel returns: channel sums, and what TAIL names, each with one rounding (``math.fsum``)."""
    channels = np.moveaxis(x.numpy().astype(np.float64), axis, 0).reshape(x.shape[axis], -1)
    squares = math.fsum(np.square(channels).ravel())
    zeros, absmax = int((channels == 0).sum()), float(np.abs(channels).max())
    return [*map(math.fsum, channels), squares, 0, zeros, math.nan, channels.shape[1], x.shape[0], absmax]


def check(compiled: Kernel, x: Tensor, axis: int) -> Tensor:
    """That the kernel takes ``x``, and that its result is right to the last digits but three."""
    found = compiled(x, axis)
    assert found is not None
    assert found.dtype == torch.float64
    right = torch.tensor(expected(x, axis), dtype=torch.float64)
    scale = x.double().abs().sum([other for other in range(x.ndim) if other != axis])
    assert torch.all((found - right)[:-REST].abs() <= 2e-13 * scale)
    # Of this the difference to the squared means is taken.
    assert float(found[-REST]) == pytest.approx(float(right[-REST]), rel=4e-16, abs=0)
    torch.testing.assert_close(found[1 - REST :], right[1 - REST :], rtol=0, atol=0, equal_nan=True)
    return found


@needs_compiler
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 12, 16, 24, 40, 96, 500, 1152, 1280, 3000])
@pytest.mark.parametrize("rows", [1, 7, 64, 513, 5000])
def test_channels_last(compiled: Kernel, rows: int, channels: int) -> None:
    rows = min(rows, 1 + 600_000 // channels)
    check(compiled, normal(rows, channels) + 0.3, 1)


@needs_compiler
@pytest.mark.parametrize("inner", [2, 4, 7, 23, 24, 49, 1000])
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 16, 96, 3000])
@pytest.mark.parametrize("outer", [1, 3, 4, 129])
def test_channels_first(compiled: Kernel, outer: int, channels: int, inner: int) -> None:
    outer = min(outer, 1 + 600_000 // (channels * inner))
    check(compiled, normal(outer, channels, inner) + 0.3, 1)


@needs_compiler
@pytest.mark.parametrize(
    ("x", "axis"),
    [
        (normal(9, 24, 7, 5).to(memory_format=torch.channels_last), 1),
        (normal(9, 24, 1, 1).to(memory_format=torch.channels_last), 1),
        (normal(9, 1, 7, 5).to(memory_format=torch.channels_last), 1),
        (normal(5, 8, 3, 7, 9).to(memory_format=torch.channels_last_3d), 1),
        (normal(9, 7, 24), 2),
        (normal(9, 7, 24).permute(1, 2, 0), 1),
        (normal(9, 7, 24, 5).permute(3, 1, 0, 2), 2),
        (normal(96, 40, 3, 3), 0),
        (normal(96, 40, 3, 3).to(memory_format=torch.channels_last), 0),
        (normal(1, 40, 3, 3).to(memory_format=torch.channels_last), 0),
        (normal(1152, 1, 5, 5), 0),
        (normal(6, 50, 20).transpose(1, 2), 1),
        (normal(40, 30).T, 0),
        (normal(2, 3, 4, 5, 6), 2),
        (normal(300, 1), 0),
        (normal(300), 0),
        (normal(1), 0),
        (normal(1, 1), 1),
        # The stride of an axis of size 1 means nothing.
        (torch.as_strided(normal(1000), (4, 1, 7), (7, 999, 1)), 1),
        (torch.as_strided(normal(1000), (1, 3, 7), (5, 7, 1)), 1),
        (torch.as_strided(normal(1000), (9, 1, 1), (1, 17, 3)), 0),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, Tensor) else str(value),
)
def test_layouts(compiled: Kernel, x: Tensor, axis: int) -> None:
    before = x.clone()
    check(compiled, x, axis)
    assert torch.equal(x, before)


@needs_compiler
@pytest.mark.parametrize("offset", [1, 2, 3, 5, 15])
@pytest.mark.parametrize("shape", [(5, 3), (33, 101), (4, 5, 7), (3, 5, 49)])
def test_unaligned_memory_and_what_lies_around_it(compiled: Kernel, shape: tuple[int, ...], offset: int) -> None:
    number = math.prod(shape)
    memory = torch.full((offset + number + 16,), math.nan)  # of which nothing may come in
    memory[offset : offset + number] = normal(number)
    check(compiled, memory[offset : offset + number].view(shape), 1)


@needs_compiler
@pytest.mark.parametrize("shape", [(600, 24), (2000, 96), (64, 5, 9), (30, 8, 49), (3, 40_000), (2, 2, 90_001)])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: 1e-42 * x,
        lambda x: 1e25 * x,
        lambda x: 1e-30 * x,
        lambda x: 1e4 + 0.5 * x,
        torch.zeros_like,
        lambda x: x.relu() + 0.1,
        lambda x: (x - 1.5).relu() * torch.where(x > 2, -1, 1),
        lambda x: x * torch.logspace(-18, 18, len(x)).view(-1, *[1] * (x.ndim - 1)),
    ],
    ids=["denormal", "overflow", "underflow", "alike", "zero", "positive", "mostly zero", "wide range"],
)
def test_contents(compiled: Kernel, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> None:
    check(compiled, change(normal(*shape)), 1)


@needs_compiler
@pytest.mark.parametrize("shape", [(100_000, 7), (7, 300, 77), (3_000_000, 1), (50, 1200)])
def test_the_smallest_variance_that_is_promised(compiled: Kernel, shape: tuple[int, ...]) -> None:
    """A variance of 1e-10 of the second moment is right to 1e-5."""
    x = 1 + 1e-5 * normal(*shape)
    exact = x.double().numpy()
    found = check(compiled, x, 1)
    count, channels = math.prod(shape) / shape[1], shape[1]
    acv = float(found[-REST]) / (count * channels) - math.fsum((found[:-REST] / count).square().tolist()) / channels
    others = tuple(axis for axis in range(x.ndim) if axis != 1)
    assert acv == pytest.approx(float(exact.var(axis=others).mean()), rel=1e-5)


@needs_compiler
def test_millions_of_rectified_values(compiled: Kernel) -> None:
    check(compiled, normal(64, 48, 32, 32).relu().to(memory_format=torch.channels_last), 1)


@needs_compiler
@pytest.mark.parametrize("faults", [[math.nan], [math.inf], [-math.inf], [math.inf, math.nan, -math.inf]])
@pytest.mark.parametrize("shape", [(3, 2), (700, 101), (64, 5, 9), (40, 8, 490)])
def test_what_is_not_finite_is_counted_and_stays_in_its_channel(
    compiled: Kernel, threads: Callable[[int], None], shape: tuple[int, ...], faults: list[float]
) -> None:
    threads(2)
    x = normal(*shape)
    for i, fault in enumerate(faults):
        x[(-1 - i) % shape[0], 1] = fault
    found = compiled(x, 1)
    assert found is not None
    channels = x.double().transpose(0, 1).flatten(1).sum(1)
    torch.testing.assert_close(found[:-REST], channels, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert bool(found[:1].isfinite().all())
    assert not math.isfinite(found[-REST])
    assert found[1 - REST] == int((~x.isfinite()).sum())
    assert float(found[-1]) == pytest.approx(float(x.abs().amax()), nan_ok=True)


@needs_compiler
@pytest.mark.parametrize("shape", [(5000, 96), (100_001, 3), (2, 60_000), (1, 3, 50_000), (130, 24, 49), (300_000, 1)])
def test_any_number_of_threads_gives_the_same_up_to_rounding_and_each_the_same_again(
    compiled: Kernel, threads: Callable[[int], None], shape: tuple[int, ...]
) -> None:
    x = normal(*shape)
    results = []
    for number in (1, 2, 3):
        threads(number)
        results.append(check(compiled, x, 1))
        for _ in range(5):
            again = compiled(x, 1)
            assert again is not None
            torch.testing.assert_close(again, results[-1], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(results[2], results[0], rtol=1e-12, atol=1e-9, equal_nan=True)


@needs_compiler
def test_calls_from_several_threads_at_once(compiled: Kernel, threads: Callable[[int], None]) -> None:
    threads(2)
    tensors = [normal(1000 + i, 100) for i in range(8)]
    alone = [compiled(x, 1) for x in tensors]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: compiled(x, 1), tensors * 5))
    torch.testing.assert_close(together, alone * 5, rtol=0, atol=0, equal_nan=True)


@needs_compiler
def test_what_the_kernel_does_not_know_is_left_to_torch(compiled: Kernel) -> None:
    x = normal(8, 6, 4, 4)
    unknown = [x.double(), x.half(), x.bfloat16(), x[:, ::2], x[:, :, 1:], x[:1].expand(8, 6, 4, 4), torch._neg_view(x)]
    for tensor in unknown:
        assert compiled(tensor, 1) is None
        shared = torch.zeros(())  # what channel_sums returns for them does not depend on the kernel
        wanted = tensor.double().sum([0, 2, 3]) + shared
        torch.testing.assert_close(channel_sums(tensor, 1)[:-REST], wanted, rtol=1e-12, atol=1e-12)
    assert compiled(torch.nn.Parameter(x), 1) is None


@needs_compiler
@pytest.mark.parametrize("shape", [(0, 3), (0, 1), (0, 1, 4, 4), (0,)])
def test_empty_tensors_are_left_to_torch(compiled: Kernel, shape: tuple[int, ...]) -> None:
    assert compiled(torch.empty(shape), len(shape) - 1) is None


@needs_compiler
def test_transformed_functions_are_left_to_torch(compiled: Kernel) -> None:
    def loss(x: Tensor) -> Tensor:
        assert compiled(x, 1) is None
        return x.square().sum()

    torch.func.grad(loss)(normal(4, 3))


@needs_compiler
def test_the_default_device_does_not_matter(compiled: Kernel) -> None:
    x = normal(4, 3)
    with torch.device("meta"):
        found = compiled(x, 1)
    assert found is not None
    assert found.device.type == "cpu"


@needs_compiler
def test_the_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppbench.spp.sums.statistics._double_precision", None)
    layer = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    for x, axis in ((layer(normal(5, 3, 9, 9)), 1), (layer.weight, 0), (layer.bias, 0), (normal(4, 3), None)):
        assert len(channel_sums(x, axis)) == (1 if axis is None else x.shape[axis]) + REST


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_one_openmp_is_loaded() -> None:
    """Of two, the threads of each would wait in busy loops and take the cores from the other's."""
    code = (
        "import torch; from sppbench.spp.sums.cpu_kernel import kernel\n"
        "torch.ones(10**6).sum(); torch.set_num_threads(2); k = kernel()\n"
        "before = len(__import__('os').listdir('/proc/self/task'))\n"
        "for _ in range(9): k(torch.ones(1000, 1000), 1); torch.ones(10**6).sum()\n"
        "files = {line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line.split('/')[-1]}\n"
        "print(len(files), len(__import__('os').listdir('/proc/self/task')) - before)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    libraries, started = map(int, done.stdout.split())
    assert libraries <= 1
    assert started <= 1


# -- the cache --------------------------------------------------------------------------------------------------------


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@needs_compiler
def test_it_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel() is not None
    (name,) = files(cache)
    kernel.cache_clear()
    monkeypatch.setattr(kernel_module, "_compile", None)
    assert kernel() is not None
    assert files(cache) == [name]


def compile_in(caches: Path) -> None:
    kernel_module.user_cache_path = lambda name: caches / name  # type: ignore[assignment]
    kernel.cache_clear()
    assert kernel() is not None


@needs_compiler
def test_processes_that_compile_at_once_share_the_file(cache: Path) -> None:
    both = [start(compile_in, cache.parents[1]) for _ in range(2)]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(files(cache)) == 1


@needs_compiler
@pytest.mark.parametrize("change", ["source", "flags", "compiler", "processor"])
def test_another_source_or_machine_has_a_file_of_its_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str, request: pytest.FixtureRequest
) -> None:
    if change != "compiler":  # the one that must really be called
        request.getfixturevalue("in_no_time")
    assert kernel() is not None
    if change == "source":
        monkeypatch.setattr(kernel_module, "SOURCE", tmp_path / "kernel.c")
        (tmp_path / "kernel.c").write_bytes(Path(kernel_module.__file__).with_name("kernel.c").read_bytes() + b"\n")
    elif change == "flags":
        monkeypatch.setattr(kernel_module, "FLAGS", (*kernel_module.FLAGS, "-g0"))
    elif change == "compiler":
        script = tmp_path / "compiler"
        script.write_text(f'#!/bin/sh\nexec {kernel_module._compiler()[0]} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("CC", f"{script} -g0")
    else:
        monkeypatch.setattr(kernel_module.platform, "machine", lambda: "another")
    kernel.cache_clear()
    assert kernel() is not None
    assert len({name.split("-")[1] for name in files(cache)}) == 2


@needs_compiler
@pytest.mark.usefixtures("in_no_time")
@pytest.mark.parametrize("damage", ["truncated", "empty", "changed", "of another system"])
def test_a_damaged_file_is_replaced(cache: Path, damage: str) -> None:
    assert kernel() is not None
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    stem = path.stem.rpartition("-")[0]
    path.unlink()  # it is loaded in this process
    content = {"truncated": whole[:5000], "empty": b"", "changed": whole[:-1] + b"!", "of another system": b"MZ"}[
        damage
    ]
    if damage == "of another system":
        (cache / f"{stem}-{kernel_module._hash(content)}.so").write_bytes(content)
    else:
        path.write_bytes(content)
    kernel.cache_clear()
    found = kernel()
    assert found is not None
    check(found, normal(7, 5), 1)
    assert path.read_bytes() == whole


@needs_compiler
@pytest.mark.usefixtures("in_no_time")
def test_a_cache_that_cannot_be_written_is_done_without(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    found = kernel()
    assert found is not None
    check(found, normal(7, 5), 1)


@pytest.fixture
def loaded(in_no_time: None, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The kernels that are loaded from now on; that each is private at that moment is checked."""
    paths: list[Path] = []
    load = kernel_module.ctypes.CDLL

    def recording(name: str) -> ctypes.CDLL:
        path = Path(name)
        if path.name.startswith("kernel"):
            assert not path.is_symlink()
            assert not path.stat().st_mode & 0o022
            paths.append(path)
        return load(name)

    monkeypatch.setattr(kernel_module.ctypes, "CDLL", recording)
    return paths


@needs_compiler
@pytest.mark.usefixtures("in_no_time")
def test_the_cache_is_private_whatever_the_umask(cache: Path) -> None:
    before = os.umask(0)
    try:
        assert kernel() is not None
    finally:
        os.umask(before)
    (path,) = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o022 == 0


def writable_by_group(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.chmod(0o770)


def writable_by_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.chmod(0o1777)


def link_to_a_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = cache.rename(cache.with_name("elsewhere"))
    cache.symlink_to(elsewhere, target_is_directory=True)


def other_owner(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)


@needs_compiler
@pytest.mark.parametrize("fault", [writable_by_group, writable_by_all, link_to_a_folder, other_owner])
def test_nothing_is_loaded_from_or_put_into_a_folder_that_is_not_private(
    cache: Path,
    loaded: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    assert kernel() is not None
    before = files(cache)
    assert [path.parent for path in loaded] == [cache]
    fault(cache, monkeypatch)
    kernel.cache_clear()
    found = kernel()
    assert found is not None
    check(found, normal(7, 5), 1)
    assert files(cache) == before
    assert loaded[1:]
    assert cache not in [path.parent for path in loaded[1:]]


@needs_compiler
@pytest.mark.parametrize("fault", ["writable by all", "link", "other owner"])
def test_a_file_that_is_not_private_is_replaced_and_not_loaded(
    cache: Path, loaded: list[Path], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    assert kernel() is not None
    (path,) = cache.iterdir()
    before = path.stat().st_ino
    if fault == "writable by all":
        path.chmod(0o666)
    elif fault == "link":
        path.rename(cache.parent / "elsewhere.so")
        path.symlink_to(cache.parent / "elsewhere.so")
    else:
        lstat = Path.lstat

        def of_another(self: Path) -> os.stat_result:
            status = lstat(self)
            fields = list(status)
            fields[4] += status.st_ino == before
            return os.stat_result(fields)

        monkeypatch.setattr(Path, "lstat", of_another)
    kernel.cache_clear()
    found = kernel()
    assert found is not None
    check(found, normal(7, 5), 1)
    assert len(loaded) == 2
    assert path.lstat().st_ino != before
    assert not path.is_symlink()


# -- no kernel --------------------------------------------------------------------------------------------------------


def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def failing_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "failing"
    script.write_text("#!/bin/sh\necho no licence >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))


def senseless_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "senseless"
    script.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho senseless > "$2"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))


def no_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel_module, "SOURCE", tmp_path / "missing.c")


def another_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "win32")


@pytest.mark.parametrize("fault", [no_compiler, failing_compiler, senseless_compiler, no_source, another_system])
def test_without_a_kernel_the_numbers_are_the_same(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[pytest.MonkeyPatch, Path], None],
) -> None:
    fault(monkeypatch, tmp_path)
    with caplog.at_level(logging.DEBUG, logger="sppbench"):
        for x, axis in ((normal(5, 3), 1), (normal(60, 24, 30, 31), 1), (normal(300, 300), 0), (normal(7), 0)):
            found = channel_sums(x, axis)
            right = expected(x if x.ndim > 1 else x[:, None], axis)
            assert found.tolist() == pytest.approx(right, rel=1e-12, abs=1e-9, nan_ok=True)
    assert kernel() is None
    assert len([record for record in caplog.records if "no compiled kernel" in record.message]) <= 1
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_torch_without_openmp_has_a_kernel_of_one_thread(
    cache: Path, monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]
) -> None:
    monkeypatch.setattr(kernel_module, "_OPENMP", ("no_such_function",) * 3)
    threads(2)
    if (found := kernel()) is None:
        pytest.skip("there is no C compiler")
    check(found, normal(1000, 300), 1)

"""Memory that is kept between steps, and constants that are mapped before the first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sppbench.run import memory

# Page faults of writing 64 MiB for the second time, after the first 64 MiB were freed.
FAULTS = """
import resource, sys
from sppbench.run.memory import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
b"x" * (64 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"x" * (64 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
    ).stdout.split()


def test_freed_memory_is_written_again_without_asking_the_system() -> None:
    could, kept = _faults("keep")
    if could != "True":
        pytest.skip("only glibc can keep memory")
    [plain] = _faults("plain")
    assert int(plain) > 3 * int(kept) + 20  # 16,384 pages of 4 KiB; 32 where the system gives pages of 2 MiB


@pytest.mark.parametrize("library", [object(), type("Refuses", (), {"mallopt": staticmethod(lambda *_: 0)})])
def test_where_it_cannot_be_set_nothing_happens(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    assert not memory.keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    assert not memory.keep_freed_memory()


# Pages of the read-only parts of PyTorch's library: how many there are, and how many this process has.
PAGES = """
import mmap, torch
from pathlib import Path
from sppbench.run.memory import map_constants
def pages():
    size = resident = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = "r--p" in line and line.endswith("/libtorch_cpu.so")
        elif ours and line.startswith(("Size:", "Rss:")):
            kilobytes = int(line.split()[1])
            size += kilobytes * line.startswith("Size:")
            resident += kilobytes * line.startswith("Rss:")
    return size * 1024 // mmap.PAGESIZE, resident * 1024 // mmap.PAGESIZE
print(*pages(), map_constants(), *pages())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages a process has")
def test_constants_are_mapped_as_a_whole() -> None:
    told = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True).stdout.split()
    size, before, read, same, after = map(int, told)
    assert before < size == same == read
    assert after == size > 1_000


def test_where_the_map_cannot_be_read_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory, "_MAPS", tmp_path / "missing")
    assert memory.map_constants() == 0


def test_a_map_without_the_library_gives_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "10000-20000 r--p 00000000 08:01 12 /lib/libother.so\n"
        "20000-30000 rw-p 00000000 08:01 12 /lib/libtorch_cpu.so\n"
        "30000-40000 r--p 00000000 00:00 0\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory, "_MAPS", maps)
    assert memory.map_constants() == 0


def test_other_systems_have_no_map_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory, "_MAPS", None)
    assert memory.map_constants() == 0

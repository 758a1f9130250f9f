"""Memory that is kept between steps."""

from __future__ import annotations

import subprocess
import sys

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

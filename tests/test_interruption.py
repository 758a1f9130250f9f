"""Ctrl-C before a command is under way: one line and status 130."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sppbench.__main__ import COMMANDS, main
from sppbench.interruption import deferred_interrupt

SOURCES = Path(__file__).parents[1] / "src"


@pytest.fixture(autouse=True)
def signal_is_heeded() -> Iterator[None]:
    """A shell starts what it puts into the background with this signal ignored, and so do the tests then."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctrl_c(*_: object) -> int:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)  # never to its end
    return 0


@pytest.mark.parametrize(("module", "first"), [("sppbench.train", "hydra"), ("sppbench", "argparse")])
def test_while_python_imports(tmp_path: Path, module: str, first: str) -> None:
    """The first package that an entry point imports gets the signal."""
    (tmp_path / f"{first}.py").write_text("import os, time\nos.kill(os.getpid(), 2)\ntime.sleep(5)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{SOURCES}"}
    arguments = [sys.executable, "-m", module, "train"]
    process = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "sppbench: interrupted\n")


def test_in_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(COMMANDS, "claims", dataclasses.replace(COMMANDS["claims"], run=ctrl_c))
    with pytest.raises(SystemExit) as stop:
        main(["claims", "results"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "sppbench: interrupted\n"


def test_while_libraries_load() -> None:
    """They would abort the process, or be left half loaded."""
    before, loaded = signal.getsignal(signal.SIGINT), []

    def load() -> None:
        with deferred_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            loaded.append("torch")

    with pytest.raises(KeyboardInterrupt):
        load()
    assert loaded == ["torch"]
    assert signal.getsignal(signal.SIGINT) is before

"""Sweeps in processes that are forked from one that has imported everything, which takes seconds, once."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import sppbench.train
from tests.processes import start

BEGUN = "begun.txt"  # a line for each run that has begun: process, directory, and whether it was resumed


def in_fork(directory: Path, do: Any, *arguments: str) -> None:
    """Calls ``do``, one of the functions below, in a process of its own, in a directory."""
    process = start(_prepared, directory, do, arguments)
    process.join(280)
    assert process.exitcode == 0


def kill_five_times(*arguments: str) -> None:
    """A sweep that nothing disturbs, and the same one killed at random moments, until it ends."""
    pid = _sweep("sweeps.name=whole", *arguments)
    _begins(pid, after=1)
    began = time.monotonic()
    assert _wait(pid) == 0
    cell = time.monotonic() - began  # of the second, as all but the first of a process are faster
    draw = random.Random(0)
    killed = 0
    for _ in range(5):
        lines = _begun()
        pid = _sweep("sweeps.name=killed", *arguments)
        _begins(pid, after=lines)
        time.sleep(draw.uniform(0, 0.4) * cell)  # these five add up to 1.1 cells of 2
        os.kill(pid, signal.SIGKILL)
        killed += _wait(pid) == -signal.SIGKILL
    assert killed >= 4
    assert _wait(_sweep("sweeps.name=killed", *arguments)) == 0


def two_at_once(*arguments: str) -> None:
    pids = [_sweep(*arguments) for _ in range(2)]
    assert [_wait(pid) for pid in pids] == [0, 0]


def _prepared(directory: Path, do: Any, arguments: tuple[str, ...]) -> None:

    import sppbench.data
    import sppbench.run.assembly
    import sppbench.run.callbacks
    import sppbench.run.classifier

    torch.set_num_threads(1)
    os.chdir(directory)
    run = sppbench.train._run

    def noting(parts: Any, directory: Any, resume: bool) -> Any:
        with Path(BEGUN).open("a") as file:
            file.write(f"{os.getpid()} {directory.path} {resume}\n")
        return run(parts, directory, resume)

    sppbench.train._run = noting
    do(*arguments)


def _sweep(*arguments: str) -> int:
    """The number of the process."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        sys.argv = ["sppbench.train", "-m", *arguments]
        status: Any = 1
        try:
            sppbench.train.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            os._exit(status)
    return pid


def _begun() -> int:
    """How many runs have begun so far."""
    file = Path(BEGUN)
    return len(file.read_text().splitlines()) if file.exists() else 0


def _begins(pid: int, after: int) -> None:
    """Waits until one more than ``after`` has begun, or the process has ended."""
    while _begun() <= after and not _ended(pid):
        time.sleep(0.01)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

"""Runs ``sppbench`` commands in forks of this process, so that heavy packages are imported once; many tries at once.

Each command gets a process of its own, from which nothing comes back but its exit status, its output and its files.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

# Before torch is imported: a process that has started threads of OpenMP must not be forked.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("MPLBACKEND", "agg")

Try = TypeVar("Try")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: Its exit status; negative after a signal, with the signal's number.
        out, err: What it wrote to standard output and to standard error.
        seconds: How long it took.
    """

    status: int
    out: str
    err: str
    seconds: float


def preload() -> None:
    """Imports what commands import inside their functions."""
    import torch

    import sppbench.evidence.inspection
    import sppbench.evidence.keep
    import sppbench.run.assembly
    import sppbench.run.callbacks
    import sppbench.run.classifier
    import sppbench.run.csv_logger
    import sppbench.run.memory
    import sppbench.spp.callback
    import sppbench.study.claims.formats
    import sppbench.study.claims.judge
    import sppbench.study.figures.draw_all
    import sppbench.study.figures.figure_output
    import sppbench.study.report.content
    import sppbench.study.report.page
    import sppbench.study.table.formats
    import sppbench.study.table.table_figures
    import sppbench.train  # noqa: F401

    torch.set_num_threads(1)


def command(
    *arguments: str,
    directory: Path,
    kill_after: float | None = None,
    limit: float = 300,
    before: Callable[[], object] = lambda: None,
) -> Outcome:
    """Runs ``sppbench`` with these arguments in a directory.

    Args:
        arguments: The command and its arguments.
        directory: Where it runs, and where its output is kept meanwhile.
        kill_after: Seconds after which it is ended with SIGKILL, if it still runs.
        limit: The same, where it should have ended by itself.
        before: Called in the new process, before the command.
    """
    files = [directory / f".{name}-of-command" for name in ("out", "err")]
    for file in files:
        file.touch()  # here: the process may be killed before it opens them
    start = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        _become(arguments, directory, files, before)
    status = _wait(pid, start + (limit if kill_after is None else kill_after))
    out, err = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    for file in files:
        file.unlink()
    return Outcome(status, out, err, time.monotonic() - start)


def _become(
    arguments: Sequence[str], directory: Path, files: Sequence[Path], before: Callable[[], object]
) -> None:  # never returns
    status = 70
    try:
        for descriptor, file in zip((1, 2), files, strict=True):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(directory)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        before()
        from sppbench.__main__ import main

        status = main(arguments)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _wait(pid: int, until: float) -> int:
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.002)


def in_parallel(attempt: Callable[[Try], Result], tries: Iterable[Try], processes: int) -> list[Result]:
    """The results of all tries, in their order; each is made in a fork of this process."""
    # Not a multiprocessing.Pool: it ends its processes by SIGTERM, which can leave it waiting for them for ever.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
        return list(pool.map(attempt, tries))

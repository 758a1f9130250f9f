"""Ctrl-C ends a command with one line and exit status 130, and without a traceback."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn


def exit_interrupted() -> NoReturn:
    """Ends this process, as after Ctrl-C."""
    print("sppbench: interrupted", file=sys.stderr)
    sys.exit(130)


def catch_early_interrupt() -> None:
    """Does so also for a Ctrl-C that nothing catches, as while an entry point still imports what it needs."""
    report = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            exit_interrupted()
        report(kind, error, trace)

    sys.excepthook = hook


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Puts off a Ctrl-C to the end of a block: libraries in C++ abort the process if one comes while they load."""
    if threading.current_thread() is not threading.main_thread():  # which alone is told of signals
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, _: pressed.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt

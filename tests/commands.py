"""Commands that are run in the tests' own process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sppbench.__main__ import main

Say = Callable[..., tuple[int, str, str]]


def saying(command: str) -> Any:
    """A fixture that runs a command with arguments and returns its exit status, standard output and standard error."""

    @pytest.fixture
    def say(capsys: pytest.CaptureFixture[str]) -> Say:
        def run(*arguments: str | Path) -> tuple[int, str, str]:
            try:
                status = main([command, *map(str, arguments)])
            except SystemExit as stop:
                status = int(stop.code or 0)
            return status, *capsys.readouterr()

        return run

    return say

"""Blocks of shell in pages: each command is known, with its options; what is quick runs."""

from __future__ import annotations

import argparse
import io
import re
import shlex
from collections.abc import Callable
from contextlib import redirect_stdout

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from sppbench.__main__ import COMMANDS
from sppbench.__main__ import main as sppbench
from sppbench.files import config_directory
from tests.docs.pages import ROOT, command_lines

QUICK = {"look", "compare"}
OWN = {"mynet", "mydata", "mine"}  # the reader's
OF_HYDRA = {"-m", "--help", "--config-dir", "--config-path", "--config-name"}


def run_block(block: str) -> str:
    """Checks each command of a block, and runs what is quick and has its inputs; what that printed."""
    variables: dict[str, str] = {}
    printed = io.StringIO()
    with redirect_stdout(printed):
        for line in command_lines(block):
            if found := re.fullmatch(r"(\w+)=(\".*\"|\S+)", line):
                variables[found[1]] = found[2].strip('"')
                continue
            for command in line.split(" && "):
                _run(command, variables)
    return printed.getvalue()


def _run(line: str, variables: dict[str, str]) -> None:
    for variable, value in variables.items():
        line = line.replace(f"${variable}", value)
    program, *arguments = shlex.split(line)
    if program == "python" and arguments[:2] == ["-m", "sppbench.train"]:
        _train(arguments[2:])
    elif program == "sppbench" and arguments[:1] == ["train"]:
        _train(arguments[1:])
    elif "/" in program:
        assert (ROOT / program).exists(), program
    else:
        PROGRAMS[program](arguments)


def _train(arguments: list[str]) -> None:
    """Options are Hydra's, and the overrides of one run compose; what is the reader's own does not."""
    options = [one for one in arguments if one.startswith("-")]
    assert set(options) <= OF_HYDRA, options
    overrides = [one for one in arguments if "=" in one]
    parsed = OverridesParser.create().parse_overrides(overrides)  # also of sweeps
    for one in parsed:
        choices = str(one.get_value_string()).strip("[]").split(",")
        if (folder := config_directory() / one.key_or_group).is_dir():
            missing = {choice for choice in choices if not (folder / f"{choice}.yaml").exists()}
            assert missing <= OWN, f"{one.key_or_group}: {missing}"
    if "-m" in options or any(option.startswith("--config") for option in options):
        return
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        compose("train", [one.input_line for one in parsed])


def _sppbench(arguments: list[str]) -> None:
    name, *rest = arguments
    if name == "--help":
        return
    parser = argparse.ArgumentParser(exit_on_error=False)
    COMMANDS[name].add_arguments(parser)
    parsed = parser.parse_args(rest)
    if name in QUICK and _has_inputs(parsed):
        sppbench(arguments)


def _has_inputs(parsed: argparse.Namespace) -> bool:
    """Whether the runs to compare are there, or the net is one of the examples."""
    if hasattr(parsed, "a"):
        return parsed.a.exists() and parsed.b.exists()
    return str(parsed.net).startswith("examples.")


def _make(arguments: list[str]) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None
    assert {one for one in arguments if "=" not in one} <= {*phony[1].split()}
    for one in arguments:
        if one.startswith("ARGS="):
            _train(shlex.split(one.removeprefix("ARGS=")))


def _pip(arguments: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(re.findall(r"^(\w+) = \[", project.partition("[project.optional-dependencies]")[2], re.MULTILINE))
    assert arguments[0] == "install"
    for one in arguments[1:]:
        found = re.fullmatch(r"sppbench(?:\[(.*)\])?", one)
        assert found is not None, one
        assert {*(found[1] or "").split(",")} - {""} <= extras


def _python(arguments: list[str]) -> None:
    path = arguments[1].replace(".", "/") + ".py" if arguments[0] == "-m" else arguments[0]
    assert (ROOT / path).exists(), path


def _nothing(arguments: list[str]) -> None:
    """Programs of others."""


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "sppbench": _sppbench,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "torchrun": _nothing,
    "git": _nothing,
    "cd": _nothing,
}

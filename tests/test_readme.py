"""The README names only files, make targets, commands, options and choices that exist."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from sppbench.__main__ import COMMANDS
from sppbench.files import config_directory

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = "src|tests|conf|benchmarks|docs|examples|results"
CODE = re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL) + re.findall(r"(?<!`)`([^`]+)`(?!`)", README)
LINES = [line for block in CODE for line in block.replace("sppbench\n", "sppbench ").splitlines()]
OWN = {"conf/model/mynet.yaml"}  # the reader's own net


def test_files_exist() -> None:
    named = set(re.findall(rf"(?<![\w/.])(?:{FOLDERS})/[\w./-]*\w", README)) - OWN
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_make_targets_exist_and_are_explained() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    targets = {*phony[1].split()} - {"help"}
    assert set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)) <= targets
    assert set(re.findall(r'@echo "make (\w+) ', makefile)) >= targets - {"check"}


def test_commands_and_their_options_exist() -> None:
    found = [match for line in LINES if (match := re.match(r"sppbench ([a-z]+)([^#]*)", line))]
    assert {match[1] for match in found} == {*COMMANDS, "train"}
    for name, rest in (match.groups() for match in found):
        if name in COMMANDS:
            parser = argparse.ArgumentParser()
            COMMANDS[name].add_arguments(parser)
            assert set(re.findall(r"--[a-z-]+", rest)) <= parser._option_string_actions.keys(), name


@pytest.mark.parametrize("group", ["model", "data", "optimizer", "trainer", "spp", "sweeps", "logger"])
def test_the_choices_of_each_group_are_the_configurations(group: str) -> None:
    row = re.search(rf"^\| `{group}` \| (.*) \|$", README, re.MULTILINE)
    assert row is not None
    existing = {path.stem for path in (config_directory() / group).glob("*.yaml")}
    named = set(re.findall(r"`([a-z]\w*)`", row[1]))
    assert named <= existing | {"_h100"}
    assert {name for name in existing if not name.endswith("_h100")} <= named


def test_choices_on_command_lines_exist() -> None:
    for group in ("model", "data", "optimizer", "trainer", "spp", "sweeps"):
        for value in re.findall(rf"(?<![\w.]){group}=([a-z][\w,]*)", README):
            for choice in {*value.split(",")} - {"mynet"}:
                assert (config_directory() / group / f"{choice}.yaml").exists(), f"{group}={choice}"

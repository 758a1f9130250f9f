"""Pages name only files, make targets, commands, options and choices that exist; the README is short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sppbench.spp
from sppbench.__main__ import COMMANDS
from sppbench.files import config_directory
from tests.docs.pages import INLINE, PAGES, README, ROOT, name

FOLDERS = "src|tests|conf|benchmarks|docs|examples|results"
OWN = {"conf/model/mynet.yaml", "conf/sweeps/mine.yaml"}  # the reader's
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def test_the_readme_is_read_in_three_minutes() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 900


def test_files_exist() -> None:
    named = set(re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w", "\n".join(INLINE))) - OWN
    assert len(named) > 20
    assert [one for one in sorted(named) if not (ROOT / one).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_to_files(path: Path) -> None:
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" not in link and not link.startswith("#"):
            assert (path.parent / link.partition("#")[0]).exists(), link


def test_make_targets_are_explained() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    targets = {*phony[1].split()} - {"help"}
    assert {found for text in INLINE for found in re.findall(r"^make (\w+)", text)} <= targets | {"help"}
    assert set(re.findall(r'@echo "make (\w+) ', makefile)) >= targets - {"check"}


def test_every_command_has_its_help_on_the_page_of_the_command_line() -> None:
    page = (ROOT / "docs/api/command_line.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^```\{command-help\} (\w+)$", page, re.MULTILINE)) == {*COMMANDS, "train"}


def test_every_public_name_has_its_place_in_the_reference() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/api").glob("*.md"))
    documented = set(re.findall(r"^\.\. auto(?:class|function|exception):: (\S+)$", pages, re.MULTILINE))
    assert {*sppbench.spp.__all__} <= documented
    for package in ("models", "data"):
        source = (ROOT / f"src/sppbench/{package}/__init__.py").read_text(encoding="utf-8")
        public = re.findall(r'"(\w+)"', source.partition("__all__ = ")[2])
        assert len(public) > 5
        assert {f"sppbench.{package}.{one}" for one in public} <= documented


def test_choices_in_the_text_exist() -> None:
    for group in ("model", "data", "optimizer", "trainer", "spp", "sweeps"):
        for text in INLINE:
            for value in re.findall(rf"(?<![\w.]){group}=([a-z][\w,]*)", text):
                for choice in value.split(","):
                    assert (config_directory() / group / f"{choice}.yaml").exists(), f"{group}={choice}"

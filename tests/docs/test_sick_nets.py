"""What the pages about sick nets quote is what `diagnose` says today."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "read_a_plot").glob("*.md"))
QUOTE = re.compile(r"<!-- (\w+), (\w+): written by docs/sick_nets\.py -->\n(.*?)<!-- end -->", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*\w)")
# Without training, so that what a processor rounds otherwise does not grow.
FAST = ("saturated_tanh", "drowned_skip")


@pytest.fixture(scope="module")
def sick_nets() -> Iterator[ModuleType]:
    sys.path.insert(0, str(DOCS))
    try:
        import sick_nets

        yield sick_nets
    finally:
        sys.path.remove(str(DOCS))


def quotes() -> dict[tuple[str, str], str]:
    found = [quote for path in PAGES for quote in QUOTE.findall(path.read_text(encoding="utf-8"))]
    return {(name, case): words.removeprefix("```text\n").removesuffix("\n```\n") for name, case, words in found}


@pytest.mark.parametrize("name", FAST)
def test_pages_quote_what_diagnose_says(sick_nets: ModuleType, name: str) -> None:
    with torch.random.fork_rng():
        cases = sick_nets.cases_of(name)
    quoted = {case: words for (net, case), words in quotes().items() if net == name}
    assert quoted.keys() == cases.keys()
    for case, words in quoted.items():
        said = sick_nets.said(cases[case].findings)
        assert " ".join(NUMBER.sub("#", said).split()) == " ".join(NUMBER.sub("#", words).split())
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (said, words)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.05)


def test_each_net_has_its_figure_and_its_words(sick_nets: ModuleType) -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    for name, made in sick_nets.NETS.items():
        assert (DOCS / "read_a_plot" / f"{name}.png").exists()
        assert f"]({name}.png)" in pages
        cases = {case for net, case in quotes() if net == name}
        assert cases == made().keys() - {"float32"}  # which is there to compare with
        assert quotes()[name, "cured"] == "nothing found"
        assert all(quotes()[name, case] != "nothing found" for case in cases - {"cured"})


def test_words_are_put_between_their_markers_alone(sick_nets: ModuleType) -> None:
    page = "a\n<!-- net, sick: written by docs/sick_nets.py -->\nold\n<!-- end -->\nb\n<!-- end -->\n"
    put = sick_nets.put(page, "net", "sick", r"new \1")
    assert put == page.replace("old", "```text\nnew \\1\n```")
    assert sick_nets.put(put, "net", "cured", "other") == put

"""Every block of code in the README and the pages runs, in its order, a page in a temporary directory of its own."""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from matplotlib import pyplot
from matplotlib.figure import Figure
from sybil import Document, Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.myst import CodeBlockParser, SkipParser
from torch import nn

from sppbench.spp import run_figures
from tests.docs.pages import PAGES, README, ROOT, name
from tests.docs.shell import run_block

BLOCK = re.compile(r"^```(python|bash)$", re.MULTILINE)
SNIPPETS = [path for path in PAGES if BLOCK.search(path.read_text(encoding="utf-8"))]
PRINTED = "printed by the block before"


class Python(CodeBlockParser):
    """Runs Python, and keeps what it prints."""

    language = "python"

    def evaluate(self, example: Example) -> None:
        printed = io.StringIO()
        with redirect_stdout(printed):
            PythonEvaluator()(example)
        example.namespace[PRINTED] = printed.getvalue()


class Shell(CodeBlockParser):
    """Checks commands, runs those that are quick, and keeps what they print."""

    language = "bash"

    def evaluate(self, example: Example) -> None:
        example.namespace[PRINTED] = run_block(example.parsed)


class Script(CodeBlockParser):
    """Takes note of a piece of an example: the script has a test of its own."""

    language = "py"

    def evaluate(self, example: Example) -> None:
        example.namespace[PRINTED] = None


class Output(CodeBlockParser):
    """Compares a quoted output with that of the block before."""

    language = "text"

    def evaluate(self, example: Example) -> str | None:
        printed = example.namespace.get(PRINTED, "")
        if printed is None:
            return None
        return None if quoted(example.parsed, printed) else f"not what is printed:\n{printed}"


def quoted(quote: str, printed: str) -> bool:
    """Whether a quote is in an output: words in their order, numbers up to a fifth, ``...`` for anything.

    Example:
        >>> quoted("loss 1.0 ... end", "a loss 1.1 and so on, the end")
        True
        >>> quoted("loss 1.0", "loss 1.5")
        False
    """
    words = printed.split()
    start = 0
    for piece in re.split(r"\.\.\.", quote):
        wanted = piece.split()
        places = range(start, len(words) - len(wanted) + 1)
        found = next((at for at in places if all(map(_equal, wanted, words[at : at + len(wanted)]))), None)
        if found is None:
            return False
        start = found + len(wanted)
    return True


NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def _equal(wanted: str, word: str) -> bool:
    numbers, others = ([float(one) for one in NUMBER.findall(text)] for text in (wanted, word))
    alike = len(numbers) == len(others) and all(
        one == pytest.approx(other, rel=0.2) for one, other in zip(numbers, others, strict=True)
    )
    return alike and NUMBER.sub("", wanted) == NUMBER.sub("", word)


SYBIL = Sybil(parsers=[Python(), Shell(), Script(), Output(), SkipParser()], path=str(ROOT), pattern="*.md")


@pytest.fixture
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Figures of whole runs take seconds, and have tests of their own: here they are empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))  # as in a checkout
    monkeypatch.setattr(run_figures, "find_plot", lambda name: lambda *arguments, **options: Figure((1, 1)))
    monkeypatch.setattr(sys, "argv", ["python"])
    torch.manual_seed(0)
    yield
    torch.compiler.reset()
    pyplot.close("all")
    wandb.teardown()


def read(path: Path) -> Document:
    document: Document = SYBIL.parse(path)
    if path == README:  # its reader has a net
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        batch = {"x": torch.randn(16, 8), "y": torch.randint(3, (16,))}
        document.namespace.update(model=model, criterion=nn.CrossEntropyLoss(), **batch)
    return document


@pytest.mark.usefixtures("_in_a_folder_of_its_own")
@pytest.mark.parametrize("path", SNIPPETS, ids=name)
def test_the_snippets_of_a_page_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for library in ("transformers", "accelerate", "torchvision", "wandb"):
        if f"from {library} import" in text and find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    examples = list(read(path).examples())
    blocks = {"python", "bash"}
    assert len(examples) >= sum(found[1] in blocks for found in BLOCK.finditer(text))
    for example in examples:
        example.evaluate()


def test_what_is_quoted_is_found_but_for_small_differences_of_numbers() -> None:
    printed = "epoch 0: loss 2.30\nepoch 1: loss 2.10\nvanishing: factor of 0.17"
    assert quoted("epoch 0: loss 2.3\nepoch 1: loss 2.0", printed)
    assert quoted("epoch 0: ... factor of 0.16", printed)
    for wrong in ("epoch 0: loss 1.3", "loss 2.10 ... epoch 0:", "exploding: factor", "epoch 2: loss 2.1"):
        assert not quoted(wrong, printed), wrong

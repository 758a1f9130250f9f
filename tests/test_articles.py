"""The examples: each script runs, and its notebook and its page in the docs are those of the script."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from sppbench.spp.run_figures import RunFigures
from sppbench.train import main

ROOT = Path(__file__).parents[1]
# Those that have text in them; the others are modules that commands are tried on.
NAMES = [path.stem for path in sorted((ROOT / "examples").glob("*.py")) if path.read_text("utf-8").startswith("# %%")]
AS_NOTEBOOK = "own_net"  # the one that trains in a process of its own; here it does so in this one


@pytest.fixture(scope="module")
def articles() -> ModuleType:
    for library in ("jupytext", "nbformat"):
        pytest.importorskip(library, reason=f"{library} makes the notebooks")
    spec = importlib.util.spec_from_file_location("articles", ROOT / "docs" / "articles.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["articles"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, in which the examples are tiny; after it, where they leave their figures."""
    monkeypatch.setenv("SPPBENCH_TINY", "1")
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    for drawing in ("draw_epoch", "draw_heatmaps"):  # of whole runs: they take seconds, and have tests of their own
        monkeypatch.setattr(RunFigures, drawing, lambda *_: None)
    yield tmp_path / "outputs" / "examples"
    plt.close("all")


def test_there_are_all_of_them() -> None:
    assert set(NAMES) == {"dead_relus", "edge_of_chaos", "transformers_trainer", "gan", "bf16_and_fp32", "own_net"}
    index = (ROOT / "docs" / "examples" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\((\w+)\.md\)", index)) == set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name != AS_NOTEBOOK])
def test_script_runs(name: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "transformers_trainer":
        pytest.importorskip("transformers", reason="an extra of its own")
        pytest.importorskip("accelerate", reason="the Trainer needs it")
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert list(tiny.glob("*.png"))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What runs cells as a kernel does, with figures below them: in this process, as a kernel would import all anew."""
    pytest.importorskip("ipykernel", reason="it runs notebooks")
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    class Shell(InteractiveShell):
        def enable_gui(self, gui: str | None = None) -> None:
            """There is none."""

    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the shell has one of its own
    with mpl.rc_context():
        shell = Shell.instance(config=Config({"HistoryManager": {"enabled": False}}))
        shell.run_line_magic("matplotlib", "inline")
        yield shell
        Shell.clear_instance()
    plt.switch_backend("agg")


def test_notebook_runs(articles: ModuleType, tiny: Path, notebook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from IPython.utils.capture import capture_output

    run = subprocess.run

    def train(command: list[str], cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        if command[:3] != [sys.executable, "-m", "sppbench.train"]:
            return run(command, cwd=cwd, **options)
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.syspath_prepend(str(Path.cwd()))
            patch.setattr(sys, "argv", command[2:])
            main()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", train)
    cells = nbformat.read(ROOT / "examples" / "notebooks" / f"{AS_NOTEBOOK}.ipynb", as_version=4).cells
    with capture_output() as captured:
        for cell in cells:
            if cell.cell_type == "code":
                notebook.run_cell(cell.source).raise_error()
    assert "test accuracy" in captured.stdout
    assert any("image/png" in output.data for output in captured.outputs)
    assert list(tiny.glob("*.png"))


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_that_of_the_script(articles: ModuleType, name: str) -> None:
    """``make notebooks`` writes it."""
    written = (ROOT / "examples" / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert written == articles.notebook_of(ROOT / "examples" / f"{name}.py")


@pytest.mark.parametrize("name", NAMES)
def test_page_is_that_of_the_script(articles: ModuleType, name: str) -> None:
    """``python docs/articles.py NAME`` writes it."""
    folder = ROOT / "docs" / "examples"
    page = (folder / f"{name}.md").read_text(encoding="utf-8")
    outputs = articles.outputs_in(page)
    assert page == articles.page_of(ROOT / "examples" / f"{name}.py", outputs)
    figures = [figure for output in outputs for figure in output.figures]
    assert figures
    assert sorted(figures) == sorted(path.name for path in folder.glob(f"{name}-*.png"))
    assert any(output.text for output in outputs)

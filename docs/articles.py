"""Makes notebooks, in examples/notebooks/, and pages, in docs/examples/, of the scripts in examples/.

    python docs/articles.py [NAME ...] [--again] [--notebooks]

A script is in jupytext's percent format: text and code in turns. In its page each piece of code is followed by what it
printed and drew; of a page whose code has not changed these are kept, and only the text is written anew. Nothing is
downloaded. To run all takes ten minutes on two cores; the notebooks, which have no outputs, a second.

Code is marked as ``py``, not ``python``: the tests run it from the scripts, tiny, and not from the pages.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jupytext
import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).parents[1]
SCRIPTS, NOTEBOOKS, PAGES = ROOT / "examples", ROOT / "examples" / "notebooks", ROOT / "docs" / "examples"
WIDTH = 1200  # pixels of a figure at most
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


@dataclass
class Output:
    """What a cell of code printed, and the files and texts of what it drew."""

    text: str = ""
    figures: list[str] = field(default_factory=list)


def scripts() -> list[Path]:
    """Those with text in them: the others are modules that commands are tried on."""
    return [path for path in sorted(SCRIPTS.glob("*.py")) if path.read_text(encoding="utf-8").startswith("# %%")]


def notebook_of(script: Path) -> str:
    """The notebook, without outputs."""
    notebook = jupytext.read(script)
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = str(number)  # otherwise random
    return nbformat.writes(notebook, version=4) + "\n"


def page_of(script: Path, outputs: Sequence[Output]) -> str:
    """The page in Markdown; ``outputs`` are those of the cells of code."""
    left = iter(outputs)
    parts = [f"<!-- Made from examples/{script.name} by docs/articles.py. -->"]
    for cell in jupytext.read(script).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        output = next(left)
        parts.append(f"```py\n{cell.source}\n```")
        if output.text:
            parts.append(f"```text\n{output.text}\n```")
        parts += [f"![{cell.metadata.get('alt', '')}]({figure})" for figure in output.figures]
    name = script.stem
    parts.append(f"*The script is `examples/{name}.py`, the notebook `examples/notebooks/{name}.ipynb`.*")
    return "\n\n".join(parts) + "\n"


def code_of(script: Path) -> list[str]:
    """The cells of code."""
    return [cell.source for cell in jupytext.read(script).cells if cell.cell_type == "code"]


def code_in(page: str) -> list[str]:
    """Those in a page."""
    return re.findall(r"^```py\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)


def outputs_in(page: str) -> list[Output]:
    """What stands behind each cell of code in a page."""
    code = r"^```py\n.*?^```\n\n(?:```text\n(?P<text>.*?)\n```\n\n)?(?P<figures>(?:!\[[^\]]*\]\([^)]*\)\n\n)*)"
    return [
        Output(match["text"] or "", re.findall(r"\]\(([^)]*)\)", match["figures"]))
        for match in re.finditer(code, page, re.MULTILINE | re.DOTALL)
    ]


def run(script: Path) -> Iterator[tuple[Output, list[Figure]]]:
    """Runs a script cell by cell, as a notebook does: a figure that is a cell's last value is shown."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in jupytext.read(script).cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source, filename=str(script))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        printed, value = io.StringIO(), None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, str(script), "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), str(script), "eval"), names)
        figures = [plt.figure(number) for number in plt.get_fignums()]
        if isinstance(value, Figure) and value not in figures:
            figures.append(value)
        yield Output(printed.getvalue().strip("\n")), figures
        plt.close("all")


def save(figure: Figure, path: Path) -> None:
    """As PNG with 256 colors, no wider than a page."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=max(100, WIDTH / figure.get_figwidth()))
    picture = Image.open(content).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def write_page(script: Path, again: bool) -> None:
    """The page and its figures; it is only run if its code has changed, or ``again``."""
    path = PAGES / f"{script.stem}.md"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    kept = outputs_in(old)
    if not again and code_in(old) == code_of(script) and any(output.figures for output in kept):
        path.write_text(page_of(script, kept), encoding="utf-8")
        return
    print(f"running {script.name}", flush=True)
    for drawn in PAGES.glob(f"{script.stem}-*.png"):
        drawn.unlink()
    outputs = []
    number = 0
    for output, figures in run(script):
        for figure in figures:
            number += 1
            output.figures.append(f"{script.stem}-{number}.png")
            save(figure, PAGES / output.figures[-1])
        outputs.append(output)
    path.write_text(page_of(script, outputs), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of scripts; all by default")
    parser.add_argument("--again", action="store_true", help="also run what has not changed")
    parser.add_argument("--notebooks", action="store_true", help="only the notebooks, which need no run")
    arguments = parser.parse_args()
    mpl.use("agg")
    os.environ.pop("SPPBENCH_TINY", None)
    for folder in (NOTEBOOKS, PAGES):
        folder.mkdir(exist_ok=True)
    chosen = [script for script in scripts() if script.stem in (arguments.names or [script.stem])]
    for script in chosen:
        (NOTEBOOKS / f"{script.stem}.ipynb").write_text(notebook_of(script), encoding="utf-8")
    if arguments.notebooks:
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # for what the scripts write
        for script in chosen:
            write_page(script, arguments.again)
        os.chdir(ROOT)


if __name__ == "__main__":
    main()

"""Where the table goes: files in a directory, and Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sppbench.evidence.runs import EvidenceError
from sppbench.files import write_text
from sppbench.study.common.output import OutputError, log_run, write_figures
from sppbench.study.table.cells import Table
from sppbench.study.table.export import tidy, to_csv, to_json
from sppbench.study.table.latex import latex
from sppbench.study.table.text import markdown, terminal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = {"terminal": terminal, "markdown": markdown, "csv": to_csv, "latex": latex, "json": to_json}
_SUFFIXES = {"markdown": "md", "csv": "csv", "latex": "tex", "json": "json"}


def write_table(table: Table, figures: dict[str, Figure], directory: Path) -> list[Path]:
    """Writes table.md, table.csv, table.tex, table.json, and each figure as PNG and PDF; makes the directory.

    Each file is whole, or is what it was before.

    Returns:
        The files.

    Raises:
        EvidenceError: The directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, suffix in _SUFFIXES.items():
            paths.append(directory / f"table.{suffix}")
            write_text(paths[-1], FORMATS[name](table) + "\n")
        return paths + write_figures(figures, directory)
    except OSError as error:
        raise EvidenceError(f"cannot write to {directory}: {error.strerror or error}") from error


def log_table(table: Table, figures: dict[str, Figure]) -> None:
    """Logs one W&B run, with the key ``table`` and one for each figure; offline unless WANDB_MODE says otherwise.

    Its files are in ``wandb/`` of the table's directory. It is in the group of the sweep's name, and tagged with it.

    Raises:
        EvidenceError: W&B refuses it, or cannot be reached.
    """
    try:
        log_run(table.directory, "table", table.name, {"table": tidy(table)}, figures)
    except OutputError as error:
        raise EvidenceError(str(error)) from error

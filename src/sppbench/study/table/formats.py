"""The table in all its forms: on a terminal, in Markdown, LaTeX, CSV and JSON; and where it is written to."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppbench.evidence.runs import Run
from sppbench.files import write_text
from sppbench.study.common.intervals import Summary
from sppbench.study.common.output import OutputError, log_run, write_figures
from sppbench.study.common.plain_text import in_markdown, visible
from sppbench.study.common.text_tables import DASH, pipes, wrapped
from sppbench.study.table.cells import Cell, Table
from sppbench.study.table.notes import DAGGER, describe_test, devices_used, notes, versions_used
from sppbench.study.table.verdict import CONFIDENCE, PREDICTION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = "Test accuracy in percent, mean ± sample standard deviation over seeds"

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "—": "---",
    "†": r"\dag{}",
    "…": r"\ldots{}",
}


def terminal(table: Table) -> str:
    """One line per cell, then the notes; at most 120 columns wide for names as long as the study's."""
    header, details = _details(table, "model")
    rows = [list(map(visible, row)) for row in details]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [_aligned(header, widths), "-" * (sum(widths) + 2 * len(widths) - 2)]
    for number, row in enumerate(rows):
        if number and row[0] != rows[number - 1][0]:
            lines.append("")
        lines.append(_aligned(row, widths))
    listed = [line for note in notes(table) for line in wrapped(note, "- ", "  ")]
    return "\n".join([visible(str(table.directory)), CAPTION, "", *lines, "", *listed])


def matrix(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a matrix like the study's Table 1: a row per learning rate, a column per net."""
    header = ["learning rate", *table.titles.values()]
    return header, [[f"{lr:g}", *(_matrix_cell(table.cell(model, lr)) for model in table.titles)] for lr in table.lrs]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()


def markdown(table: Table) -> str:
    """A matrix like the study's Table 1, a line per cell with the intervals, and the notes."""
    compared = table.published is not None
    legend = " (published, verdict, runs)" if compared else " (runs)"
    header, rows = _details(table, "net")
    return "\n".join(
        [
            f"# {in_markdown(table.name)}",
            "",
            f"{CAPTION}{legend}.",
            "",
            *pipes(*matrix(table)),
            "",
            *pipes(header, rows),
            "",
            *(f"- {in_markdown(note)}" for note in notes(table)),
        ]
    )


def _details(table: Table, net: str) -> tuple[list[str], list[list[str]]]:
    """Header and one row per cell."""
    header = ["lr", net, "n", "ours"]
    if table.published is not None:
        header += ["published", "difference [90 %]", "expected [95 %]", "verdict"]
    rows = []
    for cell in table.cells:
        row = [f"{cell.lr:g}", cell.model if net == "model" else cell.title, f"{cell.n}/{cell.expected}", ours(cell)]
        rows.append(row + (_comparison(cell) if table.published is not None else []))
    return header, rows


def _comparison(cell: Cell) -> list[str]:
    published = plus_minus(cell.published, digits=1) if cell.published is not None else DASH
    difference = expected = DASH
    if cell.comparison is not None:
        difference = _signed(cell.comparison.difference)
        interval = cell.comparison.interval
        difference += f" [{_signed(interval[0])}, {_signed(interval[1])}]" if interval is not None else f" [{DASH}]"
        expected = "[{:.2f}, {:.2f}]".format(*cell.comparison.prediction)
    return [published, difference, expected, cell.verdict or DASH]


def ours(cell: Cell) -> str:
    """Our mean ± standard deviation, with the number of diverged runs; "missing" without runs that count."""
    if cell.ours is None:
        return "missing" if not cell.runs else "none counts"
    diverged = cell.count("diverged")
    return plus_minus(cell.ours, digits=2) + (f" {DAGGER}{diverged}" if diverged else "")


def plus_minus(value: Summary, digits: int) -> str:
    """Mean ± standard deviation; a dash for that of a single run."""
    std = f"{value.std:.{digits}f}" if value.std is not None else DASH
    return f"{value.mean:.{digits}f} ± {std}"


def _signed(points: float) -> str:
    return f"{round(points, 2) + 0.0:+.2f}"  # the sum turns -0.0 into 0.0


def _matrix_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    published = f"{plus_minus(cell.published, digits=1)}, {cell.verdict}, " if cell.published is not None else ""
    return f"{ours(cell)} ({published}n = {cell.n})"


def latex(table: Table) -> str:
    """A floating table: rows are learning rates, columns nets; below each of our values the published one."""
    lines = []
    for lr in table.lrs:
        cells = [table.cell(model, lr) for model in table.titles]
        lines.append(_row([f"{lr:g}", *(ours(cell) if cell is not None else "" for cell in cells)]))
        if table.published is not None:
            lines.append(_row(["published", *map(_published, cells)]))
        lines += [_row(["", *map(_verdict, cells)]), r"\addlinespace"]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"  \centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"  \caption{{{in_latex(table.name)}: {in_latex(CAPTION)}.}}",
            rf"  \begin{{tabular}}{{l{'c' * len(table.titles)}}}",
            r"    \toprule",
            rf"    {' & '.join(map(_header, ['learning rate', *table.titles.values()]))} \\",
            r"    \midrule",
            *(f"    {line}" for line in lines[:-1]),
            r"    \bottomrule",
            r"  \end{tabular}",
            "",
            r"  \medskip",
            r"  \begin{minipage}{\linewidth}",
            r"    \footnotesize\raggedright",
            *(f"    {in_latex(note)}\\par" for note in notes(table)),
            r"  \end{minipage}",
            r"\end{table}",
        ]
    )


def _header(title: str) -> str:
    """In two lines where there is a bracket, so that the study's four columns fit a page."""
    first, bracket, second = title.partition(" (")
    return rf"\shortstack{{{in_latex(first)}\\{in_latex(bracket + second).strip()}}}" if bracket else in_latex(title)


def _row(values: list[str]) -> str:
    return " & ".join(map(in_latex, values)) + r" \\"


def _published(cell: Cell | None) -> str:
    return plus_minus(cell.published, digits=1) if cell is not None and cell.published is not None else ""


def _verdict(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{cell.verdict} (n = {cell.n})" if cell.verdict else f"n = {cell.n}"


def in_latex(text: str) -> str:
    """Text that LaTeX sets as it is written."""
    return "".join(_SPECIAL.get(letter, letter) for letter in visible(text))


def tidy(table: Table) -> list[dict[str, Any]]:
    """A row per cell, with the same keys in each; None where there is no value."""
    return [_tidy_cell(cell) for cell in table.cells]


def _tidy_cell(cell: Cell) -> dict[str, Any]:
    ours, published, comparison = cell.ours, cell.published, cell.comparison
    low, high = comparison.interval if comparison is not None and comparison.interval is not None else (None, None)
    return {
        "model": cell.model,
        "title": cell.title,
        "lr": cell.lr,
        "n": cell.n,
        "expected": cell.expected,
        "mean": ours.mean if ours is not None else None,
        "std": ours.std if ours is not None else None,
        "diverged": cell.count("diverged"),
        "failed": cell.count("failed"),
        "unfinished": cell.count("interrupted", "stopped_early", "unfinished"),
        "damaged": cell.count("damaged"),
        "missing": cell.missing,
        "published_mean": published.mean if published is not None else None,
        "published_std": published.std if published is not None else None,
        "published_n": published.n if published is not None else None,
        "difference": comparison.difference if comparison is not None else None,
        "difference_low": low,
        "difference_high": high,
        "difference_df": comparison.df if comparison is not None else None,
        "prediction_low": comparison.prediction[0] if comparison is not None else None,
        "prediction_high": comparison.prediction[1] if comparison is not None else None,
        "verdict": cell.verdict,
    }


def to_csv(table: Table) -> str:
    """One row per cell; what is None is empty."""
    rows = tidy(table)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _in_csv(value) for key, value in row.items()} for row in rows)
    return file.getvalue().rstrip("\n")


def _in_csv(value: Any) -> Any:
    """A spreadsheet takes a text that begins so for a formula, and runs it; an apostrophe makes it a text again."""
    text = visible(value) if isinstance(value, str) else ""
    return value if not text else f"'{text}" if text[0] in "=+-@" else text


def to_json(table: Table) -> str:
    """Everything, down to the runs."""
    published = table.published
    content = {
        "name": table.name,
        "metric": "test accuracy in percent, mean and sample standard deviation over seeds",
        "seeds": table.seeds,
        "margin": table.margin,
        "confidence": CONFIDENCE,
        "prediction": PREDICTION,
        "test": describe_test(table),
        "published": {"source": published.source, "n": published.n, "note": published.note} if published else None,
        "departures": table.departures,
        "devices": devices_used(table),
        "versions": versions_used(table),
        "cells": [
            _tidy_cell(cell)
            | {"missing_seeds": cell.missing_seeds, "kinds": cell.kinds, "runs": [_run(run) for run in cell.runs]}
            for cell in table.cells
        ],
        "notes": notes(table),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def _run(run: Run) -> dict[str, Any]:
    result = run.result
    return {
        "path": run.place.as_posix(),
        "seed": run.seed,
        "status": run.state,
        "accuracy": run.accuracy,
        "kind": run.kind,
        "config_hash": result.config_hash if result is not None else None,
        "device": result.device if result is not None else None,
        "problem": run.problem,
    }


FORMATS = {"terminal": terminal, "markdown": markdown, "csv": to_csv, "latex": latex, "json": to_json}
_SUFFIXES = {"markdown": "md", "csv": "csv", "latex": "tex", "json": "json"}


def write_table(table: Table, figures: dict[str, Figure], directory: Path) -> list[Path]:
    """Writes table.md, table.csv, table.tex, table.json, and each figure as PNG and PDF; makes the directory.

    Each file is whole, or is what it was before.

    Returns:
        The files.

    Raises:
        OutputError: The directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, suffix in _SUFFIXES.items():
            paths.append(directory / f"table.{suffix}")
            write_text(paths[-1], FORMATS[name](table) + "\n")
        return paths + write_figures(figures, directory)
    except OSError as error:
        raise OutputError(f"cannot write to {directory}: {error.strerror or error}") from error


def log_table(table: Table, figures: dict[str, Figure]) -> None:
    """Logs one W&B run, with the key ``table`` and one for each figure; offline unless WANDB_MODE says otherwise.

    Its files are in ``wandb/`` of the table's directory. It is in the group of the sweep's name, and tagged with it.

    Raises:
        OutputError: W&B refuses it, or cannot be reached.
    """
    log_run(table.directory, "table", table.name, {"table": tidy(table)}, figures)

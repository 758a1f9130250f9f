"""The table for people: on a terminal, in Markdown and in LaTeX."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from sppbench.study.common.intervals import Summary
from sppbench.study.table.cells import Cell, Table
from sppbench.study.table.notes import DAGGER, notes

WIDTH = 110  # columns of a terminal
DASH = "\N{EM DASH}"
CAPTION = "Test accuracy in percent, mean ± sample standard deviation over seeds"


def terminal(table: Table) -> str:
    """One line a cell, then the notes; at most 120 columns wide for names as long as the study's."""
    header, rows = _details(table, "model")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [_aligned(header, widths), "-" * (sum(widths) + 2 * len(widths) - 2)]
    for number, row in enumerate(rows):
        if number and row[0] != rows[number - 1][0]:
            lines.append("")
        lines.append(_aligned(row, widths))
    wrapped = [_wrapped(note) for note in notes(table)]
    return "\n".join([str(table.directory), CAPTION, "", *lines, "", *wrapped])


def _wrapped(note: str) -> str:
    # Paths stay whole, to be copied.
    return textwrap.fill(
        note, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()


def markdown(table: Table) -> str:
    """A matrix like the study's Table 1, a line a cell with the intervals, and the notes."""
    compared = table.published is not None
    legend = " (published, verdict, runs)" if compared else " (runs)"
    header, rows = _details(table, "net")
    matrix = [[f"{lr:g}", *(_matrix_cell(table.cell(model, lr)) for model in table.titles)] for lr in table.lrs]
    return "\n".join(
        [
            f"# {table.name}",
            "",
            f"{CAPTION}{legend}.",
            "",
            *_pipes(["learning rate", *table.titles.values()], matrix),
            "",
            *_pipes(header, rows),
            "",
            *(f"- {_escape_markdown(note)}" for note in notes(table)),
        ]
    )


def _pipes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(_escape_markdown(value) for value in line)} |" for line in lines]


def _escape_markdown(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\|*_`<" else letter for letter in text)


def _details(table: Table, net: str) -> tuple[list[str], list[list[str]]]:
    """Header and one row a cell."""
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

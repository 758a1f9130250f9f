"""The table as LaTeX, for a document that uses the package booktabs."""

from __future__ import annotations

from sppbench.study.table.cells import Cell, Table
from sppbench.study.table.notes import notes
from sppbench.study.table.text import CAPTION, ours, plus_minus

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


def escape(text: str) -> str:
    """Text that LaTeX sets as it is written."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


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
            rf"  \caption{{{escape(table.name)}: {escape(CAPTION)}.}}",
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
            *(f"    {escape(note)}\\par" for note in notes(table)),
            r"  \end{minipage}",
            r"\end{table}",
        ]
    )


def _header(title: str) -> str:
    """In two lines where there is a bracket, so that the study's four columns fit a page."""
    first, bracket, second = title.partition(" (")
    return rf"\shortstack{{{escape(first)}\\{escape(bracket + second).strip()}}}" if bracket else escape(title)


def _row(values: list[str]) -> str:
    return " & ".join(map(escape, values)) + r" \\"


def _published(cell: Cell | None) -> str:
    return plus_minus(cell.published, digits=1) if cell is not None and cell.published is not None else ""


def _verdict(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{cell.verdict} (n = {cell.n})" if cell.verdict else f"n = {cell.n}"

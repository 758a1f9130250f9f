"""The page: content in, one HTML file out, and the same in Weights & Biases."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sppbench.errors import UserError
from sppbench.files import write_text
from sppbench.study.claims.claim import Claim
from sppbench.study.common.output import log_run
from sppbench.study.figures.drawing import Drawing, reason
from sppbench.study.figures.figure_output import renderable
from sppbench.study.report import run_list
from sppbench.study.report.answers import HEADLINE_FIGURE, answer, own_answer
from sppbench.study.report.content import Content, gather, ways_to_make
from sppbench.study.report.pictures import picture
from sppbench.study.report.plotly_conversion import chart
from sppbench.study.report.run_pages import draw_learning
from sppbench.study.table.formats import CAPTION, ours, plus_minus, tidy
from sppbench.study.table.notes import notes

Made = TypeVar("Made")

DASH, MINUS = "\N{EM DASH}", "\N{MINUS SIGN}"


class ReportError(UserError):
    """Something that the user must fix; the message says what, in a line."""


def render(content: Content, page: Path, every: int | None = None) -> str:
    """The whole page as HTML that loads nothing.

    Args:
        content: What it says.
        page: Where it will be: links to runs are relative to it.
        every: Seconds after which a browser that shows it is to read it anew, as it will be written anew; None: never.
    """
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("sppbench.study.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": number}
    environment.globals |= {"ours": ours, "plus_minus": plus_minus, "dash": DASH}
    evidence = content.evidence
    notes_on_figures = list(content.figure_notes)
    charts = _made(chart, content.drawings, "as an interactive figure", notes_on_figures)
    papers = _made(paper, content.drawings, "on paper", notes_on_figures)
    html = environment.get_template("report.html.j2").render(
        content=content,
        every=every,
        answer=answer(content),
        own_answer=own_answer(content),
        learning=_learning(content, notes_on_figures),
        headline_figure=HEADLINE_FIGURE,
        ways=ways_to_make(content),
        drawings=[drawing for drawing in content.drawings if drawing.name in charts or drawing.name in papers],
        charts=charts,
        papers=papers,
        figure_notes=notes_on_figures,
        plotlyjs=Markup(get_plotlyjs()) if charts else "",
        table_caption=CAPTION,
        notes_on_table=notes,
        rows=run_list.rows(evidence.runs, evidence.directory, page),
        settings=run_list.settings(evidence.runs),
        nets=run_list.nets(evidence.runs),
        machines=run_list.machines(evidence.runs),
        markup=Markup,
    )
    # Names of files that are not UTF-8 are lone surrogates in Python, which no page can hold.
    return html.encode("utf-8", "backslashreplace").decode("utf-8")


def _learning(content: Content, notes: list[str]) -> str:
    """The learning curves of the own runs as a data URI; empty if there are none."""
    try:
        figure = draw_learning(content.own)
        return picture(figure) if figure is not None else ""
    except Exception as error:  # matplotlib raises many kinds
        notes.append(f"the learning curves cannot be drawn: {reason(error)}")
        return ""


def _made(make: Callable[[Drawing], Made], drawings: Iterable[Drawing], how: str, notes: list[str]) -> dict[str, Made]:
    """What `make` makes of each drawing, by its name; of one that fails a note, and the others are still made."""
    made = {}
    for drawing in drawings:
        try:
            made[drawing.name] = make(drawing)
        except Exception as error:  # Plotly and matplotlib raise many kinds
            notes.append(f"{drawing.name} cannot be drawn {how}: {reason(error)}")
    return made


def number(value: Any, form: str = ".4g") -> Markup:
    """A rounded number that carries the exact one in `data-value`; a dash for None."""
    if value is None:
        return Markup(DASH)
    if not math.isfinite(value):
        return Markup('<span class="number" data-value="{}">not finite</span>').format(value)
    text = format(value, form)
    mantissa, exponent, power = text.partition("e")
    if exponent:
        text = f"{mantissa}e{int(power)}"
    return Markup('<span class="number" data-value="{}">{}</span>').format(repr(value), text.replace("-", MINUS))


def paper(drawing: Drawing) -> str:
    """The figure on paper as a data URI, for print and for readers without scripts."""
    return picture(drawing.figure)


def check_writable(path: Path) -> None:
    """Checks that the page can be written, before the work begins.

    Raises:
        ReportError: There is no such directory, it is not writable, or the page's name is that of a directory.
    """
    if path.is_dir():
        raise ReportError(f"cannot write {path}: it is a directory")
    if not path.parent.is_dir():
        raise ReportError(f"cannot write {path}: {path.parent} is not a directory")
    if not os.access(path.parent, os.W_OK):
        raise ReportError(f"cannot write {path}: Permission denied")


def write_report(content: Content, path: Path, every: int | None = None) -> int:
    """Writes the page: there is the old page or the new one at any time.

    Args:
        content: What it says.
        path: The file.
        every: As in `render`.

    Returns:
        Its size in bytes.

    Raises:
        ReportError: The file cannot be written.
    """
    page = render(content, path, every)
    try:
        write_text(path, page)
        return path.stat().st_size
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror or error}") from error


def write_until_ended(directory: Path, path: Path, every: int | None) -> Iterator[tuple[Content, int]]:
    """Writes the page, and writes it anew while runs are under way.

    A sweep has no run under way between two cells: it has ended when the next page shows none, either.

    Args:
        directory: Where the runs are.
        path: The page.
        every: Seconds between two pages; None: it is written once.

    Yields:
        What each page says, and its size in bytes.
    """
    quiet = 1
    while True:
        content = gather(directory)
        quiet = 0 if content.under_way else quiet + 1
        yield content, write_report(content, path, every)
        if every is None or quiet > 1:
            return
        time.sleep(every)


def claim_rows(claims: tuple[Claim, ...]) -> list[dict[str, Any]]:
    """A row for each part of each claim, with the same keys in each."""
    return [
        {
            "claim": claim.id,
            "claim_verdict": claim.verdict,
            "statement": claim.statement,
            "test": part.name,
            "decides": part.decides,
            "quantity": part.quantity,
            "value": part.value,
            "low": part.interval[0] if part.interval is not None else None,
            "high": part.interval[1] if part.interval is not None else None,
            "n": part.n,
            "criterion": part.criterion,
            "verdict": part.verdict,
            "missing": part.missing,
        }
        for claim in claims
        for part in claim.parts
    ]


def run_rows(content: Content) -> list[dict[str, Any]]:
    """A row for each of the own runs, with the same keys in each."""
    return [
        {
            "run": page.name,
            "model": page.run.model,
            "lr": page.run.lr,
            "seed": page.run.seed,
            "status": page.status,
            "accuracy": page.run.accuracy,
            "findings": "; ".join(page.findings),
        }
        for page in content.own
    ]


def log_report(content: Content) -> list[str]:
    """Logs one W&B run with the keys ``report/runs``, ``report/claims``, ``report/<table>`` and ``report/<figure>``.

    Returns:
        A line for each figure that cannot be rendered, and is left out.

    Raises:
        OutputError: W&B refuses it, or cannot be reached.
    """
    directory = content.evidence.directory
    tables = {"report/claims": claim_rows(content.claims), "report/runs": run_rows(content)}
    tables = {key: rows for key, rows in tables.items() if rows}
    tables |= {f"report/{one.name}": tidy(one.table) for one in content.tables if one.table is not None}
    figures, problems = renderable(content.drawings)
    named = {f"report/{name}": figure for name, figure in figures.items()}
    log_run(directory, "report", directory.resolve().name, tables, named)
    return problems

"""The page: content in, one HTML text out."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sppbench.study.figures.drawing import Drawing
from sppbench.study.report import run_list as provenance
from sppbench.study.report.answer import answer, ways_to_make
from sppbench.study.report.charts import chart
from sppbench.study.report.content import TABLE, Content
from sppbench.study.table.notes import notes
from sppbench.study.table.text import CAPTION, ours, plus_minus

DASH, MINUS = "\N{EM DASH}", "\N{MINUS SIGN}"


def render(content: Content, page: Path) -> str:
    """The whole page as HTML that loads nothing.

    Args:
        content: What it says.
        page: Where it will be: links to runs are relative to it.
    """
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("sppbench.study.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": number, "paper": paper}
    environment.globals |= {"ours": ours, "plus_minus": plus_minus, "dash": DASH}
    evidence = content.evidence
    return environment.get_template("report.html.j2").render(
        content=content,
        answer=answer(content),
        ways=ways_to_make(content),
        charts={drawing.name: chart(drawing) for drawing in content.drawings},
        plotlyjs=Markup(get_plotlyjs()),
        table=content.table,
        table_name=TABLE,
        table_caption=CAPTION,
        table_notes=notes(content.table) if content.table is not None else [],
        rows=provenance.rows(evidence.runs, evidence.directory, page),
        settings=provenance.settings(evidence.runs),
        nets=provenance.nets(evidence.runs),
        machines=provenance.machines(evidence.runs),
        markup=Markup,
    )


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
    """The figure on paper as a data URI, for print and for readers without scripts.

    An indexed picture: a fifth of the size of one in SVG where layers are many.
    """
    from PIL import Image

    file = io.BytesIO()
    drawing.figure.savefig(file, format="png", dpi=200)
    picture = Image.open(file).convert("RGB").quantize(32)
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

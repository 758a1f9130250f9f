"""Colour and dashes of a drawing's curves: those of the figure on paper, so that both are read alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sppbench.spp.plots.lines import Style
from sppbench.study.figures.drawing import Drawing


@dataclass(frozen=True)
class Stroke:
    """How a curve is drawn: `color` as #rrggbb, `dash` by Plotly's name for it; whether it is a line on paper."""

    curve: str
    color: str
    dash: str = "solid"
    line: bool = False


def strokes(drawing: Drawing) -> dict[str, Stroke]:
    """By curve. A curve without an artist of its name on paper gets the next of the common styles."""
    names = list(dict.fromkeys(map(str, drawing.curves["curve"])))
    on_paper = _on_paper(drawing)
    found = {
        name: on_paper.get(name) or Stroke(name, Style(index, len(names), dense=True).color)
        for index, name in enumerate(names)
    }
    colors = [stroke.color for stroke in found.values()]
    # Dashes tell curves of one colour apart; otherwise they only look like values.
    return {
        name: stroke if colors.count(stroke.color) > 1 else replace(stroke, dash="solid")
        for name, stroke in found.items()
    }


def _on_paper(drawing: Drawing) -> dict[str, Stroke]:
    from matplotlib.colors import to_hex
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found: dict[str, Stroke] = {}
    for artist in _labelled(drawing):
        name = str(artist.get_label())
        if name in found:
            continue
        if isinstance(artist, Line2D):
            found[name] = Stroke(name, to_hex(artist.get_color()), _dash(artist), line=True)
        elif isinstance(artist, Patch):
            found[name] = Stroke(name, to_hex(artist.get_facecolor()))
    return found


def _labelled(drawing: Drawing) -> Iterator[Any]:
    """Curves, and the handles of legends: those of curves that share a handle, too."""
    for axes in drawing.figure.axes:
        yield from axes.get_legend_handles_labels()[0]
    for legend in [*drawing.figure.legends, *(axes.get_legend() for axes in drawing.figure.axes)]:
        if legend is not None:
            yield from legend.legend_handles


def _dash(line: Any) -> str:
    return {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}.get(line.get_linestyle(), "solid")

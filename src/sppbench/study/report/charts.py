"""A drawing's curves as an interactive Plotly figure: one that can be zoomed and read off by pointing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sppbench.study.figures.drawing import Drawing, Panel
from sppbench.study.report.layout import COLUMN, GAP, ROW, set_axes, set_layout
from sppbench.study.report.strokes import Stroke, strokes

if TYPE_CHECKING:
    import plotly.graph_objects as go

Values = NDArray[np.float64]

_MARKED = 40  # up to so many points in a curve, each has a marker
# By default Plotly offers to upload the data to its cloud.
_CONFIG = {"displaylogo": False, "showSendToCloud": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}


@dataclass(frozen=True)
class Chart:
    """A Plotly figure and what belongs beside it.

    Attributes:
        html: Its element, and the script that draws into it.
        min_width: Pixels below which it is scrolled.
        undrawn: Values that have no place on their axes, in words; empty if there are none.
    """

    html: str
    min_width: int
    undrawn: str


def chart(drawing: Drawing) -> Chart:
    """The interactive form of a drawing; plotly.js itself is not in it."""
    from plotly.io import to_html

    html = to_html(
        figure(drawing),
        config=_CONFIG,
        include_plotlyjs=False,
        full_html=False,
        div_id=f"plot-{drawing.name}",
    )
    columns = max((panel.column for panel in drawing.panels), default=0) + 1
    return Chart(html, columns * COLUMN, _undrawn(drawing))


def figure(drawing: Drawing) -> go.Figure:
    """The Plotly figure: a subplot a panel, and curves that one click in the legend shows or hides in all of them."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    places = {(panel.row, panel.column): panel for panel in drawing.panels}
    rows, columns = (max((place[axis] for place in places), default=0) + 1 for axis in (0, 1))
    inside = rows * ROW + (rows - 1) * GAP
    grid = [(row, column) for row in range(rows) for column in range(columns)]
    titled = len(places) > 1
    result: go.Figure = make_subplots(
        rows=rows,
        cols=columns,
        specs=[[{} if (row, column) in places else None for column in range(columns)] for row in range(rows)],
        subplot_titles=[places[place].name for place in grid if place in places] if titled else None,
        vertical_spacing=GAP / inside,
        horizontal_spacing=0.2 / (columns + 1),
    )
    drawn = strokes(drawing)
    in_legend: set[str] = set()
    for panel in drawing.panels:
        where = {"row": panel.row + 1, "col": panel.column + 1}
        for trace in _traces(panel, drawing.curves[drawing.curves["panel"] == panel.name], drawn, in_legend):
            result.add_trace(trace, **where)
        set_axes(result, panel, places, where)
    set_layout(result, inside, titled)
    result.add_traces(go.Scatter(x=[], y=[], showlegend=False) if not result.data else [])
    return result


def _traces(panel: Panel, curves: pd.DataFrame, drawn: dict[str, Stroke], in_legend: set[str]) -> Iterator[Any]:
    """Bands first, so that they lie below; then what names the points; then the curves."""
    by_name = {str(name): rows.sort_values("x", kind="stable") for name, rows in curves.groupby("curve", sort=False)}
    lines = [name for name in by_name if panel.kind == "line" or drawn[name].line]
    for name in lines:
        yield from _band(panel, by_name[name], drawn[name])
    if (titles := _point_names(panel, curves)) is not None:
        yield titles
    for name, rows in by_name.items():
        shown = name not in in_legend
        in_legend.add(name)
        yield _line(panel, rows, drawn[name], shown) if name in lines else _bar(panel, rows, drawn[name], shown)


def drawable(panel: Panel, values: pd.Series) -> Values:
    """The values as the axes can show them: NaN where they are not finite, or not positive on a logarithmic axis."""
    numbers = values.to_numpy(dtype=np.float64)
    with np.errstate(invalid="ignore"):
        fits = np.isfinite(numbers) & ((numbers > 0) | (panel.y_scale != "log"))
    return np.where(fits, numbers, np.nan)


def _line(panel: Panel, rows: pd.DataFrame, stroke: Stroke, shown: bool) -> Any:
    import plotly.graph_objects as go

    values = drawable(panel, rows["value"])
    gaps = np.isnan(values)
    # No line reaches a value whose neighbours are both missing.
    alone = ~gaps & np.append(True, gaps[:-1]) & np.append(gaps[1:], True)
    marked = len(values) <= _MARKED or bool(alone.any())
    reference = len(values) > 1 and bool((values == values[0]).all())  # a line at a threshold is not read off
    return go.Scatter(
        x=_numbers(rows["x"]),
        y=_single(values),
        name=stroke.curve,
        legendgroup=stroke.curve,
        showlegend=shown,
        mode="lines+markers" if marked and not reference else "lines",
        hoverinfo="skip" if reference else None,
        line={"color": stroke.color, "dash": stroke.dash, "width": 1.2 if reference else 1.8},
        marker={"size": 5 if len(values) <= _MARKED else 3, "color": stroke.color},
        hovertemplate=None if reference else f"%{{y:.4~g}}{_between(panel, rows)}",
        customdata=_ends(panel, rows),
    )


def _between(panel: Panel, rows: pd.DataFrame) -> str:
    return " [%{customdata[0]:.3~g}, %{customdata[1]:.3~g}]" if _ends(panel, rows) is not None else ""


def _ends(panel: Panel, rows: pd.DataFrame) -> NDArray[np.float32] | None:
    ends = np.stack([drawable(panel, rows[side]) for side in ("low", "high")], axis=1)
    return _single(ends) if np.isfinite(ends).all(axis=1).any() else None


def _bar(panel: Panel, rows: pd.DataFrame, stroke: Stroke, shown: bool) -> Any:
    import plotly.graph_objects as go

    return go.Bar(
        x=_numbers(rows["x"]),
        y=_single(drawable(panel, rows["value"])),
        name=stroke.curve,
        legendgroup=stroke.curve,
        showlegend=shown,
        marker={"color": stroke.color, "line": {"width": 0}},
        hovertemplate="%{y:.4~g}",
    )


def _band(panel: Panel, rows: pd.DataFrame, stroke: Stroke) -> Iterator[Any]:
    """The area between low and high, one polygon for each run of points that have both."""
    import plotly.graph_objects as go

    x = _numbers(rows["x"])
    low, high = drawable(panel, rows["low"]), drawable(panel, rows["high"])
    there = np.isfinite(low) & np.isfinite(high)
    if not there.any():
        return
    starts = np.flatnonzero(there & ~np.append(False, there[:-1]))
    stops = np.flatnonzero(there & ~np.append(there[1:], False)) + 1
    outlines = []
    for start, stop in zip(starts, stops, strict=True):
        piece = slice(start, stop)
        outlines.append((np.append(x[piece], x[piece][::-1]), np.append(high[piece], low[piece][::-1])))
    gap = np.array([np.nan])
    yield go.Scatter(
        x=_single(np.concatenate([part for xs, _ in outlines for part in (xs, gap)][:-1])),
        y=_single(np.concatenate([part for _, ys in outlines for part in (ys, gap)][:-1])),
        name=stroke.curve,
        legendgroup=stroke.curve,
        showlegend=False,
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=_translucent(stroke.color),
        hoverinfo="skip",
    )


def _point_names(panel: Panel, curves: pd.DataFrame) -> Any | None:
    """What writes the layer's name above the values on pointing: a trace that is not seen, as curves may be hidden."""
    import plotly.graph_objects as go

    seen = curves.assign(value=drawable(panel, curves["value"])).dropna(subset="value")
    points = seen.drop_duplicates("x").sort_values("x")
    names = points["name"].astype(str)
    if points.empty or names.nunique() < 2:
        return None
    return go.Scatter(
        x=_numbers(points["x"]),
        y=_single(points["value"].to_numpy()),
        customdata=names.to_numpy(),
        mode="markers",
        marker={"size": 1, "opacity": 0},
        showlegend=False,
        hovertemplate="<b>%{customdata}</b><extra></extra>",
    )


def _undrawn(drawing: Drawing) -> str:
    nonfinite = zero = 0
    for panel in drawing.panels:
        values = drawing.curves.loc[drawing.curves["panel"] == panel.name, "value"].to_numpy(dtype=np.float64)
        nonfinite += int((~np.isfinite(values)).sum())
        zero += int((values <= 0).sum()) if panel.y_scale == "log" else 0
    parts = [f"{_count(nonfinite)} not finite"] * bool(nonfinite)
    parts += [f"{_count(zero)} zero, which has no place on a logarithmic axis"] * bool(zero)
    return f"Not drawn: {'; '.join(parts)}." if parts else ""


def _count(n: int) -> str:
    return f"{n} value{'s that are' if n > 1 else ' that is'}"


def _numbers(values: pd.Series) -> Values:
    return np.asarray(values, dtype=np.float64)


def _single(values: Values) -> NDArray[np.float32]:
    """As the files store them; Plotly keeps all of their bits."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _translucent(color: str) -> str:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"

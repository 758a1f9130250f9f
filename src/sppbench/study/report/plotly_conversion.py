"""Converts a drawing, with its curves and colors, to an interactive Plotly figure with zoom and values on hover."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sppbench.study.figures.drawing import Drawing, Look, Panel

if TYPE_CHECKING:
    import plotly.graph_objects as go

Values = NDArray[np.float64]

# In pixels; a column narrower than COLUMN is scrolled rather than squeezed.
ROW, COLUMN = 240, 260
GAP, TOP, BOTTOM = 62, 44, 48
PAPER = "rgba(0,0,0,0)"  # the page's own colors show through
GREY = "#777777"  # of text and axes where the page's style sheet does not set them
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'
MARKED = 40  # up to so many points in a curve, each has a marker
# By default Plotly offers to upload the data to its cloud.
CONFIG = {"displaylogo": False, "showSendToCloud": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}


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
        config=CONFIG,
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
    looks = _without_needless_dashes(drawing.looks)
    in_legend: set[str] = set()
    for panel in drawing.panels:
        where = {"row": panel.row + 1, "col": panel.column + 1}
        for trace in _traces(panel, drawing.curves[drawing.curves["panel"] == panel.name], looks, in_legend):
            result.add_trace(trace, **where)
        _set_axes(result, panel, places, where)
    _set_layout(result, inside, titled)
    result.add_traces(go.Scatter(x=[], y=[], showlegend=False) if not result.data else [])
    return result


def _without_needless_dashes(looks: Mapping[str, Look]) -> dict[str, Look]:
    """Dashes are kept where they distinguish curves of the same color; elsewhere they only look like values."""
    colors = [look.color for look in looks.values()]
    return {name: look if colors.count(look.color) > 1 else replace(look, style="-") for name, look in looks.items()}


def _traces(panel: Panel, curves: pd.DataFrame, looks: Mapping[str, Look], in_legend: set[str]) -> Iterator[Any]:
    """Bands first, so that they lie below; then what names the points; then the curves."""
    by_name = {str(name): rows.sort_values("x", kind="stable") for name, rows in curves.groupby("curve", sort=False)}
    lines = [name for name in by_name if panel.kind == "line" or looks[name].over]
    for name in lines:
        yield from _band(panel, name, by_name[name], looks[name])
    if (titles := _point_names(panel, curves)) is not None:
        yield titles
    for name, rows in by_name.items():
        shown = name not in in_legend
        in_legend.add(name)
        yield (_line if name in lines else _bar)(panel, name, rows, looks[name], shown)


def drawable(panel: Panel, values: pd.Series) -> Values:
    """The values as the axes can show them: NaN where they are not finite, or not positive on a logarithmic axis."""
    numbers = values.to_numpy(dtype=np.float64)
    with np.errstate(invalid="ignore"):
        fits = np.isfinite(numbers) & ((numbers > 0) | (panel.y_scale != "log"))
    return np.where(fits, numbers, np.nan)


def _line(panel: Panel, name: str, rows: pd.DataFrame, look: Look, shown: bool) -> Any:
    import plotly.graph_objects as go

    values = drawable(panel, rows["value"])
    gaps = np.isnan(values)
    # No line reaches a value whose neighbors are both missing.
    alone = ~gaps & np.append(True, gaps[:-1]) & np.append(gaps[1:], True)
    marked = len(values) <= MARKED or bool(alone.any())
    reference = len(values) > 1 and bool((values == values[0]).all())  # a line at a threshold is not read off
    return go.Scatter(
        x=_numbers(rows["x"]),
        y=_single(values),
        name=name,
        legendgroup=name,
        showlegend=shown,
        mode="lines+markers" if marked and not reference else "lines",
        hoverinfo="skip" if reference else None,
        line={
            "color": look.color,
            "dash": "solid" if look.style == "-" else "dash",
            "width": 1.2 if reference else 1.8,
        },
        marker={"size": 5 if len(values) <= MARKED else 3, "color": look.color},
        hovertemplate=None if reference else f"%{{y:.4~g}}{_between(panel, rows)}",
        customdata=_ends(panel, rows),
    )


def _between(panel: Panel, rows: pd.DataFrame) -> str:
    return " [%{customdata[0]:.3~g}, %{customdata[1]:.3~g}]" if _ends(panel, rows) is not None else ""


def _ends(panel: Panel, rows: pd.DataFrame) -> NDArray[np.float32] | None:
    ends = np.stack([drawable(panel, rows[side]) for side in ("low", "high")], axis=1)
    return _single(ends) if np.isfinite(ends).all(axis=1).any() else None


def _bar(panel: Panel, name: str, rows: pd.DataFrame, look: Look, shown: bool) -> Any:
    import plotly.graph_objects as go

    return go.Bar(
        x=_numbers(rows["x"]),
        y=_single(drawable(panel, rows["value"])),
        name=name,
        legendgroup=name,
        showlegend=shown,
        marker={"color": look.color, "line": {"width": 0}},
        hovertemplate="%{y:.4~g}",
    )


def _band(panel: Panel, name: str, rows: pd.DataFrame, look: Look) -> Iterator[Any]:
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
        name=name,
        legendgroup=name,
        showlegend=False,
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=_translucent(look.color),
        hoverinfo="skip",
    )


def _point_names(panel: Panel, curves: pd.DataFrame) -> Any | None:
    """An invisible trace that puts the layer's name above the values on hover, even if a curve is hidden."""
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


# -- Axes and surroundings ---------------------------------------------------------------------------------------------


def _set_axes(result: go.Figure, panel: Panel, places: dict[tuple[int, int], Panel], where: dict[str, int]) -> None:
    """Labels, scale and ticks of a panel's axes; those that another panel already shows are left out.

    Args:
        result: Has the panel's traces.
        panel: One of `places`.
        places: All panels by row and column, counted from 0.
        where: Row and column of the panel as Plotly counts them, from 1.
    """
    below = [row for row, column in places if column == panel.column and row > panel.row]
    left = places.get((panel.row, panel.column - 1))
    line = {"showline": True, "linecolor": GREY, "gridcolor": "rgba(128,128,128,0.25)", "zeroline": False}
    result.update_xaxes(
        line | {"title": {"text": "" if below else panel.x_label, "standoff": 6}, "showgrid": False},
        unifiedhovertitle={"text": f"{panel.x_label} %{{x}}"},
        spikethickness=1,
        spikedash="solid",
        **where,
    )
    repeated = left is not None and left.y_label == panel.y_label
    result.update_yaxes(
        line | {"title": {"text": "" if repeated else panel.y_label, "standoff": 6}, "type": panel.y_scale},
        title_font_size=11,
        automargin=True,
        exponentformat="e",
        minexponent=3,
        zeroline=panel.kind == "stack",
        zerolinecolor=GREY,
        **(_log_ticks(result, where) if panel.y_scale == "log" else {}),
        **where,
    )
    first = next(other for other in places.values() if other.x_label == panel.x_label)
    if first is not panel:  # panels with the same quantity on x are zoomed together
        axis = next(result.select_xaxes(row=first.row + 1, col=first.column + 1))
        result.update_xaxes(matches=axis.plotly_name.replace("axis", ""), **where)


def _log_ticks(result: go.Figure, where: dict[str, int]) -> dict[str, Any]:
    """Between powers of ten ticks at 2 and 5 where there are few powers, else none and fewer powers."""
    values = [np.asarray(trace.y, dtype=np.float64) for trace in result.select_traces(**where) if trace.y is not None]
    numbers = np.concatenate(values or [np.zeros(0)])
    numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
    decades = np.log10(numbers.max() / numbers.min()) if numbers.size else 0.0
    # Without a format the ticks between powers of ten would be single digits.
    small = bool(numbers.size) and float(numbers.max()) < 1e-3
    return {"dtick": "D2" if decades < 2 else 1 + int(decades // 7), "tickformat": ".1~e" if small else ".3~g"}


def _set_layout(result: go.Figure, inside: int, titled: bool) -> None:
    """Margins, legend and colors around panels that are `inside` pixels high; `titled` if each has a title."""
    top = TOP + (18 if titled else 0)
    result.update_layout(
        template="none",
        height=inside + top + BOTTOM,
        margin={"l": 64, "r": 40, "t": top, "b": BOTTOM},
        font={"family": FONT, "size": 12, "color": GREY},
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        hovermode="x unified",
        hoverlabel={"font": {"size": 12}},
        barmode="relative",
        bargap=0.0,
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1 + (24 if titled else 6) / inside,
            "yanchor": "bottom",
            "bgcolor": PAPER,
            "itemdoubleclick": "toggleothers",
        },
        modebar={"orientation": "v", "bgcolor": PAPER, "color": GREY, "activecolor": "#0072B2"},
    )
    result.update_annotations(font={"size": 12})

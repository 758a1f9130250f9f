"""Axes and surroundings of an interactive figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sppbench.study.figures.drawing import Panel

if TYPE_CHECKING:
    import plotly.graph_objects as go

# In pixels; a column narrower than COLUMN is scrolled rather than squeezed.
ROW, COLUMN = 240, 260
GAP, _TOP, _BOTTOM = 62, 44, 48
_PAPER = "rgba(0,0,0,0)"  # the page's own colours show through
_GREY = "#777777"  # of text and axes where the page's style sheet does not set them
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'


def set_axes(result: go.Figure, panel: Panel, places: dict[tuple[int, int], Panel], where: dict[str, int]) -> None:
    """Labels, scale and ticks of a panel's axes; those that another panel already shows are left out.

    Args:
        result: Has the panel's traces.
        panel: One of `places`.
        places: All panels by row and column, counted from 0.
        where: Row and column of the panel as Plotly counts them, from 1.
    """
    below = [row for row, column in places if column == panel.column and row > panel.row]
    left = places.get((panel.row, panel.column - 1))
    line = {"showline": True, "linecolor": _GREY, "gridcolor": "rgba(128,128,128,0.25)", "zeroline": False}
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
        zerolinecolor=_GREY,
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


def set_layout(result: go.Figure, inside: int, titled: bool) -> None:
    """Margins, legend and colours around panels that are `inside` pixels high; `titled` if each has a title."""
    top = _TOP + (18 if titled else 0)
    result.update_layout(
        template="none",
        height=inside + top + _BOTTOM,
        margin={"l": 64, "r": 40, "t": top, "b": _BOTTOM},
        font={"family": _FONT, "size": 12, "color": _GREY},
        paper_bgcolor=_PAPER,
        plot_bgcolor=_PAPER,
        hovermode="x unified",
        hoverlabel={"font": {"size": 12}},
        barmode="relative",
        bargap=0.0,
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1 + (24 if titled else 6) / inside,
            "yanchor": "bottom",
            "bgcolor": _PAPER,
            "itemdoubleclick": "toggleothers",
        },
        modebar={"orientation": "v", "bgcolor": _PAPER, "color": _GREY, "activecolor": "#0072B2"},
    )
    result.update_annotations(font={"size": 12})

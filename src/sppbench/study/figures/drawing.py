"""A figure with the data behind it: for files, for comparison with published numbers, and for HTML.

`draw_panels` draws the figure on paper from the data alone: panels of curves with bands, or of stacked contributions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from sppbench.errors import UserError
from sppbench.spp.plots.axes import FONT, GRID_COLOR, MARK_COLOR, fixed_settings, new_figure, short_number
from sppbench.spp.plots.lines import LineStyle

#: Columns of `Drawing.curves`.
COLUMNS = ("panel", "curve", "x", "name", "value", "low", "high")
PEAKS = "*.activation"
LEGEND_HEIGHT = 0.28  # inches
MARKER = 1.8  # points that a marker is larger than its line is wide
LEGEND: dict[str, Any] = {"fontsize": FONT - 1, "frameon": False, "handlelength": 2.8, "columnspacing": 1.4}


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its place in the grid, counted from 0, its labels and how values are scaled and drawn.

    `kind` is "line", or "stack" for contributions that add up: positive ones are stacked upward from 0, negative ones
    downward; a curve whose look says `over`, such as the measured sum, is a line over the stack.
    """

    name: str
    row: int
    column: int
    x_label: str
    y_label: str
    y_scale: Literal["linear", "log"] = "linear"
    kind: Literal["line", "stack"] = "line"


@dataclass(frozen=True)
class Look:
    """How a curve is drawn, on paper and on the page.

    Attributes:
        color: As #rrggbb.
        style: Solid, or dashes.
        width: Of the line, in points.
        alpha: Opacity, on paper.
        marker: On paper, at the points whose names match the pattern `marked`; empty is none.
        marked: A pattern of layers' names.
        over: Whether the curve is a line over a stack, and not a part of it.
    """

    color: str
    style: LineStyle = "-"
    width: float = 1.2
    alpha: float = 1.0
    marker: str = ""
    marked: str = PEAKS
    over: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure and its data.

    Attributes:
        name: Stem of its files, such as "figure1_h100".
        title: One line.
        caption: What is drawn, from which runs and by which convention; sentences.
        panels: The axes.
        curves: All that is drawn, with the columns `COLUMNS`: the panel's name, the curve's name in the legend, x (the
            depth in layers, or the epoch), the name of this point (the layer), the value, and the ends of the band
            around it (NaN where there is none). Values that cannot be drawn are kept as they are.
        looks: For every curve, by its name, in the order of the legend.
        figure: The same for paper.
        matches: Numbers read off the published figure, beside ours.
        readings: Ways to read what is only inferred about the published figure, and which of them fits best.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    curves: pd.DataFrame
    looks: Mapping[str, Look]
    figure: Figure
    matches: tuple[Match, ...] = ()
    readings: tuple[Reading, ...] = ()


@dataclass(frozen=True)
class Match:
    """One comparison of ours with the published figure.

    Attributes:
        quantity: What is compared, in words, such as "RMSE of log10 at the peaks".
        ours: Our value or values, in words.
        published: The published ones.
        criterion: When they agree, such as "≤ 0.1".
        agrees: Whether they do; None if our runs do not decide it.
    """

    quantity: str
    ours: str
    published: str
    criterion: str
    agrees: bool | None


@dataclass(frozen=True)
class Reading:
    """One way to read what is only inferred about a published figure, and how well our runs fit under it.

    Attributes:
        reading: In words, such as "h = 100, affine off; all batches; second moment (study's convention)".
        measure: How the fit is measured; readings with the same measure are compared with each other.
        value: Of the drawn seed; None if our runs do not give it, infinite where a value that should be there is 0.
        spread: Lowest and highest over the seeds; None where there are none.
        n: Seeds behind it.
        best: Whether it fits best; several may.
        note: Which seeds, or which layers.
    """

    reading: str
    measure: str
    value: float | None
    spread: tuple[float, float] | None
    n: int
    best: bool
    note: str = ""


def draw_each(
    figures: Mapping[str, Callable[[], Drawing | None]],
) -> tuple[list[Drawing], list[str]]:
    """Draws figures, each for itself: one that fails costs no other.

    Args:
        figures: By name: what draws it; None means that there are no runs for it.

    Returns:
        The figures, and a line for each that failed, with the reason.
    """
    drawings, notes = [], []
    for name, draw in figures.items():
        try:
            drawings += [drawing] if (drawing := draw()) is not None else []
        except Exception as error:  # matplotlib, NumPy and pandas raise many kinds
            notes.append(f"{name} cannot be drawn: {reason(error)}")
    return drawings, notes


def reason(error: Exception) -> str:
    """What an error says, in one line; with its kind, unless it was raised for the user to read."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".removesuffix(": ")


@fixed_settings()
def draw_panels(
    panels: Sequence[Panel],
    curves: pd.DataFrame,
    looks: Mapping[str, Look],
    title: str,
    height: float,
    finish: Callable[[Axes], None],
    by_row: bool = False,
) -> Figure:
    """A figure of a page's width. Panels of a row share their y axis.

    A panel's title is its name; of a name such as "net: layer" only the part before the colon, in the first row alone.

    Args:
        panels: Their rows and columns count from 0 without gaps, but not every place needs a panel.
        curves: With the columns of `Drawing.curves`.
        looks: For every curve, in the order of the legend.
        title: One or more lines.
        height: Of a row of panels, in inches.
        finish: Sets the ticks of an x axis.
        by_row: Whether each row has a legend of its own, instead of one for all.
    """
    rows, columns = (1 + max(getattr(panel, side) for panel in panels) for side in ("row", "column"))
    legend_height = LEGEND_HEIGHT if by_row else 0.0
    figure = new_figure(0.7 + (height + legend_height) * rows)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[legend_height or 1e-3, height] * rows)
    drawn: NDArray[np.object_] = np.full((rows, columns), None)
    for panel in sorted(panels, key=lambda panel: (panel.row, panel.column)):
        first = next((ax for ax in drawn[panel.row] if ax is not None), None)
        ax = drawn[panel.row, panel.column] = figure.add_subplot(grid[2 * panel.row + 1, panel.column], sharey=first)
        _draw_panel(ax, panel, curves[curves["panel"] == panel.name], looks)
        finish(ax)
        net, colon, _ = panel.name.partition(":")
        ax.set_title(net if panel.row == 0 or not colon else "", fontsize=FONT - 0.5, pad=3)
        ax.tick_params(labelsize=FONT - 1.5, length=2.5, pad=2, labelleft=first is None)
        if first is None:
            ax.set_ylabel(panel.y_label, fontsize=FONT - 0.5)
        if all(other.row <= panel.row for other in panels if other.column == panel.column):
            ax.set_xlabel(panel.x_label, fontsize=FONT)
        elif not by_row:
            ax.tick_params(labelbottom=False)
    if by_row:
        figure.suptitle(title, fontsize=FONT)
        for row in range(rows):
            place = figure.add_subplot(grid[2 * row, :])
            place.set_axis_off()
            names = curves.loc[curves["panel"].isin([panel.name for panel in panels if panel.row == row]), "curve"]
            handles = _handles(looks, set(names), stacked=False)
            # Not in the layout: it is wider than the labels of the axes allow for.
            place.legend(handles=handles, loc="center", ncols=len(handles), **LEGEND).set_in_layout(False)
    else:
        handles = _handles(looks, set(curves["curve"]), stacked=panels[0].kind == "stack")
        legend = figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=len(handles),
            title=title,
            title_fontproperties={"size": FONT},
            **LEGEND,
        )
        legend.get_title().set_multialignment("center")
    return figure


def _draw_panel(ax: Axes, panel: Panel, curves: pd.DataFrame, looks: Mapping[str, Look]) -> None:
    places = np.arange(curves["x"].min(), curves["x"].max() + 1)
    above, below = np.zeros(len(places)), np.zeros(len(places))
    for number, (name, look) in enumerate(looks.items()):
        rows = curves[curves["curve"] == name].sort_values("x")
        if rows.empty:
            continue
        if panel.kind == "stack" and not look.over:
            # Steps and not slopes: nothing is interpolated where signs change.
            values = rows.set_index("x")["value"].reindex(places).to_numpy(dtype=np.float64)
            base = np.where(values < 0, below, above)
            edges = np.append(places, places[-1] + 1) - 0.5
            ax.stairs(base + values, edges, baseline=base, fill=True, color=look.color, linewidth=0, gid=name)
            values = np.nan_to_num(values)
            above, below = above + values.clip(min=0), below + values.clip(max=0)
        else:
            _draw_line(ax, rows, look, name, zorder=3 + 0.01 * number)
    ax.grid(True, axis="y", color=GRID_COLOR, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if panel.y_scale == "log":
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        ax.yaxis.set_major_locator(LogLocator(subs=_log_ticks(high / low)))
        ax.yaxis.set_major_formatter(FuncFormatter(short_number))
        ax.yaxis.set_minor_formatter(NullFormatter())
    if panel.kind == "stack":
        ax.axhline(0, color=MARK_COLOR, linewidth=0.6, zorder=2)


def _log_ticks(ratio: float) -> tuple[float, ...]:
    """Leading digits of the ticks of a logarithmic axis whose ends have this ratio."""
    if ratio > 100:
        return (1.0,)
    return (1.0, 2.0, 5.0) if ratio > 5 else (1.0, 1.4, 2.0, 3.0, 5.0, 7.0)


def _draw_line(ax: Axes, rows: pd.DataFrame, look: Look, name: str, zorder: float) -> None:
    x, value, low, high = (rows[column].to_numpy(dtype=np.float64) for column in ("x", "value", "low", "high"))
    if np.isfinite(low).any():
        ax.fill_between(x, low, high, color=look.color, alpha=0.22, linewidth=0, zorder=zorder - 1, gid=f"band {name}")
    marked = [index for index, point in enumerate(rows["name"]) if fnmatchcase(str(point), look.marked)]
    ax.plot(
        x,
        value,
        color=look.color,
        linestyle=look.style,
        linewidth=look.width,
        alpha=look.alpha,
        marker=look.marker,
        markevery=marked,
        markersize=look.width + MARKER,
        markeredgewidth=0,
        zorder=zorder,
        gid=name,
    )


def _handles(looks: Mapping[str, Look], drawn: Collection[str], stacked: bool) -> list[Artist]:
    """Entries of a legend for the curves that are drawn."""
    handles: list[Artist] = []
    for name, look in looks.items():
        if name in drawn and stacked and not look.over:
            handles.append(Patch(color=look.color, label=name))
        elif name in drawn:
            line = Line2D([], [], color=look.color, linewidth=look.width, label=name)
            line.set(linestyle=look.style, alpha=look.alpha, marker=look.marker, markersize=look.width + MARKER)
            line.set_markeredgewidth(0)
            handles.append(line)
    return handles

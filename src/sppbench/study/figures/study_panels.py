"""The two layouts of the study's figures: ACSM and ACV on a linear scale, over layers with the study's numbers.

Not as `sppbench.spp.plot_spp` draws a net of one's own, which takes a logarithmic scale and shows the second moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sppbench.spp.names import PANEL_SIGNALS, Signal
from sppbench.spp.plots import axes, lines
from sppbench.spp.plots.curves import SIGNAL_NAMES, Convention, Curves, formula, select_curves
from sppbench.spp.plots.lines import Style, Undrawn
from sppbench.study.figures.depth_axis import depth_ticks

# Inches of depth axis, as the layout leaves them.
PANEL_WIDTH, FULL_WIDTH = 2.7, 6.0


@axes.fixed_settings()
def plot_spp(frame: pd.DataFrame, epochs: Sequence[int], convention: Convention) -> Figure:
    """The panels of the study: activations, weights and gradients in rows, ACSM and ACV in columns, a curve per epoch.

    Args:
        frame: epoch means, as `sppbench.spp.plot_spp` takes them.
        epochs: epochs to draw.
        convention: "definition" or "study".
    """
    curves = select_curves(frame, epochs, convention, None, merges=False, full_batches_only=False)
    figure = axes.new_figure(7.6)
    panels = figure.subplots(3, 2, sharex=True)
    undrawn = Undrawn()
    for row, signal in zip(panels, PANEL_SIGNALS, strict=True):
        undrawn += _draw_panel(row[0], curves, signal, "acsm", PANEL_WIDTH)
        undrawn += _draw_panel(row[1], curves, signal, "acv", PANEL_WIDTH)
    for (row_number, _), ax in np.ndenumerate(panels):
        _draw_depth(ax, curves, PANEL_WIDTH, block_labels=row_number == 0)
    for ax in panels[-1]:
        ax.set_xlabel(axes.DEPTH_LABEL, fontsize=axes.FONT)
    _explain(figure, "Signal propagation", curves, convention, PANEL_WIDTH, undrawn)
    return figure


@axes.fixed_settings()
def plot_gradient(frame: pd.DataFrame, epochs: Sequence[int], convention: Convention) -> Figure:
    """The gradients' ACSM alone, large, as in Figures 1 and 2 of the study; arguments are those of `plot_spp`."""
    curves = select_curves(frame, epochs, convention, None, merges=False, full_batches_only=False)
    figure = axes.new_figure(3.8)
    ax = figure.subplots()
    undrawn = _draw_panel(ax, curves, "gradient", "acsm", FULL_WIDTH)
    _draw_depth(ax, curves, FULL_WIDTH)
    ax.set_xlabel(axes.DEPTH_LABEL, fontsize=axes.FONT)
    _explain(figure, "Gradient propagation", curves, convention, FULL_WIDTH, undrawn)
    return figure


def _explain(figure: Figure, name: str, curves: Curves, convention: Convention, width: float, undrawn: Undrawn) -> None:
    """What is drawn, above the axes; what could not be, below."""
    title = name if convention == "definition" else f"{name}, statistics by the study's convention"
    lines.add_legend(figure, list(curves.labels.values()), _dense(curves, width), f"{title}\n{curves.averaging}")
    axes.add_note(figure, undrawn.note())


def _dense(curves: Curves, width: float) -> bool:
    return not axes.fits_names(len(curves.layers.names), width)


def _draw_panel(ax: Axes, curves: Curves, signal: Signal, column: Literal["acsm", "acv"], width: float) -> Undrawn:
    """One curve per epoch; returns what could not be drawn."""
    rows = curves.table[curves.table["signal"] == signal]
    ax.set_ylabel(f"{SIGNAL_NAMES[signal]}\n{formula(rows, column)}", fontsize=axes.FONT - 0.5)
    undrawn = Undrawn()
    for index, (epoch, label) in enumerate(curves.labels.items()):
        curve = rows[rows["epoch"] == epoch].sort_values("x", kind="stable")
        x, y = curve["x"].to_numpy(np.int64), curve[column].to_numpy(np.float64)
        style = Style(index, len(curves.labels), _dense(curves, width))
        undrawn += lines.draw_curve(ax, x, y, style, "linear", label)
    axes.scale_values(ax, "linear", rows_of_marks=len(curves.labels) if undrawn.note() else 0)
    if rows.empty:
        axes.say_empty(ax, f"no {SIGNAL_NAMES[signal]} in this frame")
    return undrawn


def _draw_depth(ax: Axes, curves: Curves, width: float, block_labels: bool = True) -> None:
    layers = curves.layers
    depth_ticks(ax, layers.names, layers.kinds, width, block_labels)
    ax.set_xlim(-0.6, len(layers.names) - 0.4)

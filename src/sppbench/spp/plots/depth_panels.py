"""Panels over the depth of a net: a row for each signal, a column for each statistic, all layers on one axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sppbench.spp.names import Signal
from sppbench.spp.plots import axes, lines
from sppbench.spp.plots.axes import YScale
from sppbench.spp.plots.curves import SIGNAL_NAMES, Curves, Statistic, formula
from sppbench.spp.plots.groups import Size, draw_groups, floor_of, groups_of, modules_of
from sppbench.spp.plots.lines import Undrawn

# Inches of depth axis, as the layout leaves them, by the number of columns.
WIDTHS = {1: 6.0, 2: 2.7, 3: 1.6}
# Inches of a row of panels, and of what is above, below and between them.
ROW, MARGINS = 2.0, 1.6


def draw_over_depth(
    curves: Curves, signals: Sequence[Signal], statistics: Sequence[Statistic], yscale: YScale, height: float = ROW
) -> tuple[Figure, Undrawn]:
    """The figure with its panels, row by row, and what could not be drawn.

    Args:
        curves: what is drawn.
        signals: in rows.
        statistics: in columns.
        yscale: of all panels.
        height: of a row in inches.
    """
    width = WIDTHS[len(statistics)]
    figure = axes.new_figure(height * len(signals) + MARGINS)
    panels = figure.subplots(len(signals), len(statistics), sharex=True, squeeze=False)
    undrawn = Undrawn()
    names, kinds = curves.layers.names, curves.layers.kinds
    for (row, column), ax in np.ndenumerate(panels):
        undrawn += _draw_panel(ax, curves, signals[row], statistics[column], yscale, width)
        axes.depth_ticks(ax, names, kinds, width, block_labels=row == 0, numbers=curves.numbers)
        ax.set_xlim(-0.6, len(names) - 0.4)
    for ax in panels[-1]:
        ax.set_xlabel(axes.DEPTH_LABEL, fontsize=axes.FONT)
    return figure, undrawn


def is_dense(curves: Curves, columns: int) -> bool:
    """Whether there is no room for a marker at each layer."""
    return not axes.fits_names(len(curves.layers.names), WIDTHS[columns])


def _draw_panel(
    ax: Axes, curves: Curves, signal: Signal, statistic: Statistic, yscale: YScale, width: float
) -> Undrawn:
    rows = curves.table[curves.table["signal"] == signal]
    ax.set_ylabel(f"{SIGNAL_NAMES[signal]}\n{formula(rows, statistic)}", fontsize=axes.FONT - 0.5)
    groups = groups_of(rows, modules_of(curves.table))
    dense = not axes.fits_names(len(curves.layers.names), width)
    undrawn = draw_groups(ax, curves, signal, statistic, groups, yscale, Size.DENSE if dense else Size.ROOMY)
    axes.scale_values(ax, yscale, rows_of_marks(curves, undrawn))
    if undrawn.rounding:
        lines.draw_floor(ax, float(floor_of(rows, statistic).max()), len(curves.labels))
    if rows.empty:
        axes.say_empty(ax, f"no {SIGNAL_NAMES[signal]} in this frame")
    if any(group.title for group in groups):
        lines.add_key(ax, {group.title: group.marker for group in groups if group.marker})
    return undrawn


def rows_of_marks(curves: Curves, undrawn: Undrawn) -> int:
    """How many rows to leave for marks at the bottom edge, and for the words at the rounding floor."""
    if not undrawn.note():
        return 0
    return len(curves.labels) + (4 if undrawn.rounding else 0)

"""From a history of signal propagation to figures: the panels of the study, and its gradient figures.

Input is a table with one row per (step, layer, signal), as a probe's `collect` and `read_history` return it, or the
output of `epoch_mean` with one row per (epoch, layer, signal). Output is a `matplotlib.figure.Figure` that pyplot does
not know of: nothing is shown, written or left open, and no backend is chosen. It is 7 inches or 910 pixels wide.

Statistics of a tensor x with channels c (Brock, De & Smith 2021): ACSM, mean_c(mean(x)²), and ACV, mean_c(var(x)), both
in units of x². With the convention "definition" they are drawn as they are. The convention "study" is for figures
beside those of the poster "Designing Normalizer-Free EfficientNets" (JKU Linz, 2025): for tensors of two or fewer
dimensions, and for all weights, its "ACSM" is the second moment mean(x²), and its "ACV" the overall variance var(x). In
one thing more it differs, which no convention can undo: for Swish it recorded the inner sigmoid; a history holds the
activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sppbench.checks import check_choice
from sppbench.spp.names import PANEL_SIGNALS, Signal
from sppbench.spp.plots import axes, lines
from sppbench.spp.plots.axes import YScale
from sppbench.spp.plots.curves import (
    SIGNAL_NAMES,
    Convention,
    Curves,
    Layers,
    formula,
    select_curves,
)
from sppbench.spp.plots.lines import Style, Undrawn
from sppbench.spp.theory.chain import Init

# Inches of depth axis, as the layout leaves them.
PANEL_WIDTH, FULL_WIDTH = 2.7, 6.0


@axes.fixed_settings()
def plot_spp(
    frame: pd.DataFrame,
    epochs: Sequence[int] = (0, 9, 19),
    convention: Convention = "definition",
    yscale: YScale = "linear",
    layers: str | Sequence[str] | None = None,
    merges: bool = True,
    full_batches_only: bool = False,
    expected: pd.DataFrame | Init | None = None,
) -> Figure:
    """The panels of the study: activations, weights and gradients in rows, ACSM and ACV in columns, a curve an epoch.

    A curve is the mean over all steps of its epoch (see `epoch_mean`). A value that cannot be drawn leaves a gap and a
    mark at the bottom edge, and is counted below the figure.

    Args:
        frame: a history, or one step of it, or its `epoch_mean`.
        epochs: epochs to draw, from 0; those not in the frame are left out. If none is there: first, middle and last.
        convention: "definition" or "study", see the module's docstring; the axes' labels say which statistic is drawn.
        yscale: "linear" or "log".
        layers: names of layers, or patterns such as "features.1.*"; None is all. Depth is counted over these.
        merges: whether sums and gates (Sum, MPSum, Scale, MPScale) count as layers. Without them layers have the
            study's numbers: the first gate of SN-EfficientNet is layer 8.
        full_batches_only: leave steps with a smaller batch out of the mean. It needs a history.
        expected: values at initialization to draw as dashed lines, with their source in the legend: the table that
            `expected_of_net` makes of a net, or one like it; or "he" or "lecun", the theory of a plain chain of
            Linear, BatchNorm1d and activations with such weights, see `expected_of_chain`.

    Returns:
        a figure with six axes, row by row. On x, depth counts the drawn layers from 0.

    Raises:
        ValueError: an unknown `convention` or `yscale`; a frame without rows or without a column that is needed;
            `layers` that match none; `full_batches_only` with a frame that is averaged already; an `expected` that
            is not for this net, lacks columns or says nothing of what is drawn.

    Example:
        >>> history = read_history("run/spp.parquet")
        >>> figure = plot_spp(history, epochs=(0, 9, 19), yscale="log")
        >>> figure.savefig("panels.png")
    """
    check_choice("yscale", yscale, get_args(YScale))
    curves = select_curves(frame, epochs, convention, layers, merges, full_batches_only, expected)
    figure = axes.new_figure(7.6)
    panels = figure.subplots(3, 2, sharex=True)
    undrawn = Undrawn()
    for row, signal in zip(panels, PANEL_SIGNALS, strict=True):
        undrawn += _draw_panel(row[0], curves, signal, "acsm", yscale, PANEL_WIDTH)
        undrawn += _draw_panel(row[1], curves, signal, "acv", yscale, PANEL_WIDTH)
    for (row_number, _), ax in np.ndenumerate(panels):
        _draw_depth(ax, curves.layers, PANEL_WIDTH, block_labels=row_number == 0)
    for ax in panels[-1]:
        ax.set_xlabel(axes.DEPTH_LABEL, fontsize=axes.FONT)
    _explain(figure, "Signal propagation", curves, convention, PANEL_WIDTH, undrawn)
    return figure


@axes.fixed_settings()
def plot_gradient(
    frame: pd.DataFrame,
    epochs: Sequence[int] = (0, 9, 19),
    convention: Convention = "study",
    yscale: YScale = "linear",
    layers: str | Sequence[str] | None = None,
    merges: bool = True,
    full_batches_only: bool = False,
    expected: pd.DataFrame | Init | None = None,
) -> Figure:
    """The gradients' ACSM alone, large, as in Figures 1 and 2 of the study.

    The convention is the study's unless said otherwise, so that a feed-forward net shows second moments: batch
    normalization takes the mean out of gradients, and by its definition ACSM is zero at every Linear that feeds one.

    Arguments and errors are those of `plot_spp`.

    Returns:
        a figure with one axes. On x, depth counts the drawn layers from 0.

    Example:
        >>> history = read_history("run/spp.parquet", signals="gradient")
        >>> figure = plot_gradient(history, full_batches_only=True)
        >>> figure.savefig("gradients.pdf")
    """
    check_choice("yscale", yscale, get_args(YScale))
    curves = select_curves(frame, epochs, convention, layers, merges, full_batches_only, expected)
    figure = axes.new_figure(3.8)
    ax = figure.subplots()
    undrawn = _draw_panel(ax, curves, "gradient", "acsm", yscale, FULL_WIDTH)
    _draw_depth(ax, curves.layers, FULL_WIDTH)
    ax.set_xlabel(axes.DEPTH_LABEL, fontsize=axes.FONT)
    _explain(figure, "Gradient propagation", curves, convention, FULL_WIDTH, undrawn)
    return figure


def _explain(figure: Figure, name: str, curves: Curves, convention: Convention, width: float, undrawn: Undrawn) -> None:
    """What is drawn, above the axes; what could not be, below."""
    title = name if convention == "definition" else f"{name}, statistics by the study's convention"
    labels = list(curves.labels.values())
    drawn = {
        str(line.get_label())
        for ax in figure.axes
        for line in ax.get_lines()
        if np.isfinite(np.asarray(line.get_ydata(), np.float64)).any()
    }
    expected = {index: _expected_label(source) for index, source in enumerate(curves.sources)}
    expected = {index: label for index, label in expected.items() if label in drawn}
    lines.add_legend(figure, labels, _dense(curves, width), f"{title}\n{curves.averaging}", expected)
    axes.add_note(figure, undrawn.note())


def _expected_label(source: str) -> str:
    return f"expected at initialization ({source})"


def _dense(curves: Curves, width: float) -> bool:
    return not axes.fits_names(len(curves.layers.names), width)


def _draw_panel(
    ax: Axes, curves: Curves, signal: Signal, column: Literal["acsm", "acv"], yscale: YScale, width: float
) -> Undrawn:
    """One curve an epoch; returns what could not be drawn."""
    rows = curves.table[curves.table["signal"] == signal]
    ax.set_ylabel(f"{SIGNAL_NAMES[signal]}\n{formula(rows, column)}", fontsize=axes.FONT - 0.5)
    undrawn = Undrawn()
    for index, (epoch, label) in enumerate(curves.labels.items()):
        curve = rows[rows["epoch"] == epoch].sort_values("x", kind="stable")
        x, y = curve["x"].to_numpy(np.int64), curve[column].to_numpy(np.float64)
        style = Style(index, len(curves.labels), _dense(curves, width))
        undrawn += lines.draw_curve(ax, x, y, style, yscale, label)
    for index, (source, values) in enumerate(curves.expected_of(signal).items()):
        x, y = values["x"].to_numpy(np.int64), values[column].to_numpy(np.float64)
        lines.draw_expected(ax, x, y, index, _dense(curves, width), yscale, _expected_label(source))
    axes.scale_values(ax, yscale, rows_of_marks=len(curves.labels) if undrawn.note() else 0)
    if rows.empty:
        axes.say_empty(ax, f"no {SIGNAL_NAMES[signal]} in this frame")
    return undrawn


def _draw_depth(ax: Axes, layers: Layers, width: float, block_labels: bool = True) -> None:
    axes.depth_ticks(ax, layers.names, layers.kinds, width, block_labels=block_labels)
    ax.set_xlim(-0.6, len(layers.names) - 0.4)
